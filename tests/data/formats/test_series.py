import numpy as np
import pytest
import SimpleITK
import torchio as tio
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from lightning_atlas.data.formats import BadFileError, is_image, read_header, read_image, stem
from lightning_atlas.data.formats.series import series_modality

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (8, 6, 5)).astype(np.int16)
OBLIQUE = from_matvec(Rotation.from_euler("zyx", (0.1, 0.2, 0.3)).as_matrix() @ np.diag([0.7, 0.8, 2.5]), [-10, 20, 30])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def series(folder, uid="1.2.3.4", slices=(0, 1, 2, 3, 4), length=5):
    """Write a CT series of VOXELS, tilted, its files named in another order than they lie in."""
    folder.mkdir(exist_ok=True)
    geometry = LPS @ OBLIQUE
    axes = geometry[:3, :3] / [0.7, 0.8, 2.5]
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in slices:
        image = SimpleITK.GetImageFromArray(VOXELS[:, :, k].T)
        image.SetSpacing((0.7, 0.8))
        place = geometry[:3, 3] + 2.5 * k * axes[:, 2]
        tags = {"0008|0060": "CT", "0008|103e": f"series {uid}", "0020|000d": "1.2.3", "0020|000e": uid}
        tags |= {"0008|0018": f"{uid}.{k}", "0020|0013": str(k), "0028|1052": "-1024", "0028|1053": "1"}
        tags |= {"0020|0032": "\\".join(f"{each:.9f}" for each in place)}
        tags |= {"0020|0037": "\\".join(f"{each:.9f}" for each in axes[:, :2].T.ravel())}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{3 * k % length}.dcm"))
        writer.Execute(image)
    return folder


def test_a_dicom_series_equals_what_was_written(tmp_path):
    folder = series(tmp_path / "series")
    header, read = read_header(folder), read_image(folder)
    assert header.shape == (8, 6, 5)
    np.testing.assert_array_equal(read.data[0], VOXELS)
    for affine in (header.affine, read.affine, tio.ScalarImage(folder).affine):
        np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)


def test_a_folder_of_two_series_is_refused_with_their_names(tmp_path):
    series(tmp_path / "two", "1.2.3.4")
    with pytest.raises(BadFileError, match=r"two holds 2 series: .*series 1\.2\.3\.4.*series 1\.2\.3\.5"):
        read_header(series(tmp_path / "two", "1.2.3.5"))


def test_a_missing_slice_is_a_gap(tmp_path):
    with pytest.raises(BadFileError, match=r"gap of 5 mm between 1\.2\.3\.4_3\.dcm and 1\.2\.3\.4_4\.dcm"):
        read_header(series(tmp_path / "gap", slices=(0, 1, 3, 4)))


def test_a_slice_that_is_cut_off_is_named_even_at_the_end(tmp_path):
    last = series(tmp_path / "cut") / "1.2.3.4_2.dcm"
    last.write_bytes(last.read_bytes()[:-30])
    with pytest.raises(BadFileError, match=r"cut holds what cannot be read as a slice: 1\.2\.3\.4_2\.dcm"):
        read_image(tmp_path / "cut")


def test_two_slices_at_one_place_are_refused(tmp_path):
    series(tmp_path / "twice")
    (tmp_path / "twice" / "again.dcm").write_bytes((tmp_path / "twice" / "1.2.3.4_0.dcm").read_bytes())
    with pytest.raises(BadFileError, match="two slices at one position"):
        read_header(tmp_path / "twice")


def test_a_series_is_an_image_called_by_its_folder(tmp_path):
    assert is_image(series(tmp_path / "s.1", slices=(0, 1)))
    assert stem(tmp_path / "s.1") == "s.1"


def test_a_series_says_what_made_it(tmp_path):
    assert series_modality(series(tmp_path / "series")) == "CT"
    (tmp_path / "empty").mkdir()
    assert series_modality(tmp_path / "empty") is None
