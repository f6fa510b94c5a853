import numpy as np
import pytest

from lightning_atlas.data.formats import BadFileError, is_image, read_header, read_image, read_labels


def crop(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_a_crop_has_x_y_z_along_i_j_k_and_each_readers_answer_in_a_layer(tmp_path):
    voxel = np.random.default_rng(0).integers(0, 255, (4, 5, 6), dtype=np.uint8)
    answers = {f"answer{n}": voxel > 50 * n for n in (1, 2, 3)}
    file = crop(tmp_path / "lidc1_1.npz", voxel=voxel, **answers)
    header = read_header(file)
    assert (header.shape, header.spacing_mm) == ((6, 5, 4), (1.0, 1.0, 1.0))
    assert read_image(file).orientation == ("L", "P", "S")
    assert np.array_equal(read_image(file).numpy()[0], voxel.transpose())
    labels = read_labels(file).numpy()
    assert labels.shape == (3, 6, 5, 4)
    assert np.array_equal(labels[2], (voxel > 150).transpose())
    assert not is_image(file)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"image": np.zeros((2, 2, 2))}, "has no voxel"),
        ({"voxel": np.zeros((2, 2)), "answer1": np.zeros((2, 2))}, "axes"),
    ],
)
def test_another_archive_is_refused(tmp_path, arrays, told):
    with pytest.raises(BadFileError, match=told):
        read_image(crop(tmp_path / "other.npz", **arrays))


def test_an_answer_on_another_grid_and_a_damaged_file_are_refused(tmp_path):
    file = crop(tmp_path / "a.npz", voxel=np.zeros((3, 3, 3)), answer1=np.zeros((3, 3, 2)))
    with pytest.raises(BadFileError, match="answer1 on another grid"):
        read_labels(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadFileError, match="damaged or no npz"):
        read_image(file)
