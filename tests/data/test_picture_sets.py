import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchio.transforms import RandomNoise

from lightning_atlas.data.picture_sets import BoxLists, Held, Pictures, Texts, TrainingPictures


def test_texts_come_back_as_they_were_and_take_little():
    texts = ["", "photographies/été.png", "b" * 300, *(f"train/n{n:08d}/{n:08d}.JPEG" for n in range(5000))]
    kept = Texts(texts)
    assert [kept[n] for n in range(len(kept))] == texts
    assert len(kept) == len(texts)
    assert len(pickle.dumps(kept)) < sum(map(len, texts)) + 9 * len(texts) + 1000


def test_boxes_come_back_as_they_were():
    told = [(), ((1.0, 2.0, 0.0, 3.0, 4.0, 1.0, 5.0), (0.5, 0.0, 0.0, 2.0, 2.0, 1.0)), ()]
    kept = BoxLists(told)
    assert kept.most == 5
    assert kept[0].corners.shape == kept[2].corners.shape == (0, 6)
    assert kept[1].corners.tolist() == [[1, 2, 0, 3, 4, 1], [0.5, 0, 0, 2, 2, 1]]
    assert kept[1].classes.tolist() == [5, 0]
    assert BoxLists([(), ()]).most == -1


@pytest.fixture
def files(tmp_path):
    sizes = [(3, 4), (5, 2), (6, 6)]
    for number, (wide, high) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return Texts(str(tmp_path / f"{number}.png") for number in range(3))


def test_pictures_are_kept_if_all_fit_and_need_no_file_then(files):
    assert not Held(files, 3 * (12 + 10 + 36) - 1).whole
    assert not Held(files, 0).whole
    pictures = Pictures(files, files, None, None, 3 * (12 + 10 + 36))
    assert pictures.held.whole
    before = [np.asarray(Image.open(files[n])) for n in range(3)]
    for n in range(3):
        Path(files[n]).unlink()
        assert np.array_equal(pictures[n].image[..., 0].permute(2, 1, 0), before[n])
    with pytest.raises(ValueError, match="No such file"):
        Pictures(files, files, None, None, 0)[0]


def test_pictures_are_kept_where_processes_can_share_little_memory(files, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    assert Held(files, 10_000).whole


def test_what_is_kept_is_not_changed_by_transforms(files):
    pictures = Pictures(files, files, None, None, 10_000)
    before = [pictures[n].image.clone() for n in range(3)]
    dataset = TrainingPictures(pictures, 9, [RandomNoise(std=50)])
    for index in range(9):
        assert not torch.equal(dataset[0, index].picture.image, before[dataset.picture_of(0, index)].float())
    assert all(torch.equal(pictures[n].image, before[n]) for n in range(3))


def test_each_round_has_every_picture_once_in_an_order_of_its_own():
    names = Texts(f"{n}.png" for n in range(50))
    dataset = TrainingPictures(Pictures(names, names, None, None, 0), 120)
    rounds = [[dataset.picture_of(0, n) for n in range(50)], [dataset.picture_of(0, n) for n in range(50, 100)]]
    assert all(sorted(order) == list(range(50)) for order in rounds)
    assert rounds[0] != rounds[1] != [dataset.picture_of(1, n) for n in range(50)]
    assert dataset.picture_of(0, 3) == rounds[0][3]
