import numpy as np
import pytest

from lightning_atlas.data.store import maps
from lightning_atlas.data.store.maps import mapped


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """Ten arrays of 800 bytes, of which four may stay mapped."""
    monkeypatch.setattr(maps, "MAPPED_BYTES", 3500)
    monkeypatch.setattr(maps, "open_maps", type(maps.open_maps)())
    for number in range(10):
        np.save(tmp_path / f"{number}.npy", np.full(100, number, dtype=np.float64))
    return tmp_path


def test_a_map_has_what_the_file_has_however_often_others_come_between(arrays):
    order = np.random.default_rng(0).integers(10, size=200)
    assert all((mapped(arrays, f"{number}.npy") == number).all() for number in order)


def test_as_many_stay_as_there_is_room_for_and_the_last_ones(arrays):
    kept = {number: mapped(arrays, f"{number}.npy") for number in (0, 1, 2, 3, 0, 4)}
    assert mapped(arrays, "0.npy") is kept[0]
    assert mapped(arrays, "4.npy") is kept[4]
    assert mapped(arrays, "1.npy") is not kept[1]
    assert sum(each.nbytes for each in maps.open_maps.values()) <= 3500


def test_an_array_larger_than_the_room_is_mapped_alone(arrays):
    np.save(arrays / "large.npy", np.zeros(1000))
    assert mapped(arrays, "large.npy").shape == (1000,)
    assert len(maps.open_maps) == 1


def test_what_is_written_into_a_map_does_not_reach_the_file(arrays):
    mapped(arrays, "5.npy")[:] = 99
    assert (np.load(arrays / "5.npy") == 5).all()
