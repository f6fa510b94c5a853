import bz2
import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
import torchio as tio
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from scipy.spatial.transform import Rotation

from lightning_atlas.data.cases import Mark
from lightning_atlas.data.formats import (
    BadFileError,
    displacement_voxels,
    is_image,
    one_grid,
    read_header,
    read_image,
    read_labels,
    segments,
    stem,
)

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (8, 6, 5)).astype(np.int16)
TURN = Rotation.from_euler("zyx", (0.1, 0.2, 0.3)).as_matrix()
OBLIQUE = from_matvec(TURN @ np.diag([0.7, 0.8, 2.5]), [-10, 20, 30])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti(path, array: np.ndarray = VOXELS, affine=OBLIQUE, kind=nib.Nifti1Image):
    plain = path.parent / f"plain{'.nii.gz' if path.name.lower().endswith('.gz') else '.nii'}"
    order = ">" if array.dtype.byteorder == ">" else "<"
    kind(array, affine, kind.header_class(endianness=order), dtype=array.dtype).to_filename(plain)
    return plain.rename(path)


def by_itk(path, array=VOXELS, packed=True):
    """Write (i, j, k) or (i, j, k, channels) with ITK's own writer."""
    image = SimpleITK.GetImageFromArray(array.swapaxes(0, 2), isVector=array.ndim == 4)
    geometry = LPS @ OBLIQUE
    spacing = np.linalg.norm(geometry[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((geometry[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(geometry[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), packed)
    return path


def nrrd(path, array, fields=None, keys=None, encode: Callable[[bytes], bytes] = bytes):
    """Write the array's axes as they are, the first the fastest."""
    said = {"type": array.dtype.name, "dimension": array.ndim, "sizes": " ".join(map(str, array.shape))}
    said |= {"encoding": "raw", "endian": "little", "space": "left-posterior-superior"}
    said |= {"space directions": "none (1,0,0) (0,1,0) (0,0,1)"[5 * (array.ndim == 3) :], "space origin": "(0,0,0)"}
    lines = [f"{name}: {value}" for name, value in (said | (fields or {})).items()]
    lines += [f"{name}:={value}" for name, value in (keys or {}).items()]
    path.write_bytes("\n".join(["NRRD0005", *lines, "", ""]).encode() + encode(array.tobytes(order="F")))
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "UPPER.NII.GZ", "two words \u00e4\u00e9.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
def test_nifti_equals_nibabel(name, dtype, tmp_path):
    path = nifti(tmp_path / name, VOXELS.astype(dtype))
    read = read_image(path)
    np.testing.assert_array_equal(read.data[0], VOXELS.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(read.affine, OBLIQUE, atol=1e-5)
    assert read.data.dtype == torch.float32
    assert read_header(path).dtype == np.dtype(dtype)


def test_nifti_is_scaled_as_nibabel_scales(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", np.linspace(-1, 3, 240).reshape(8, 6, 5))
    image = nib.Nifti1Image(np.linspace(-1, 3, 240).reshape(8, 6, 5), OBLIQUE)
    image.set_data_dtype(np.int16)
    image.to_filename(path)
    saved = nib.Nifti1Image.from_filename(path)
    assert saved.header.get_slope_inter() != (1, 0)
    np.testing.assert_array_equal(read_image(path).data[0], saved.get_fdata().astype(np.float32))


def test_nifti_2_and_several_volumes(tmp_path):
    array = np.stack([VOXELS, VOXELS + 1], axis=-1)
    read = read_image(nifti(tmp_path / "a.nii", array, kind=nib.Nifti2Image))
    np.testing.assert_array_equal(read.data, np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("unit", ["mm", "micron"])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_geometry_of_nifti_is_torchios(codes, unit, tmp_path):
    image = nib.Nifti1Image(VOXELS, OBLIQUE)
    image.set_sform(OBLIQUE, codes[0])
    image.set_qform(OBLIQUE, codes[1])
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii")
    header = read_header(tmp_path / "a.nii")
    np.testing.assert_allclose(header.affine, tio.ScalarImage(tmp_path / "a.nii").affine, atol=1e-4)
    assert any("orientation" in remark for remark in header.remarks) == (codes == (0, 0))


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_what_itk_wrote_is_read_with_its_geometry(name, packed, dtype, tmp_path):
    path = by_itk(tmp_path / name, VOXELS.astype(dtype), packed)
    read = read_image(path)
    np.testing.assert_array_equal(read.data[0], VOXELS.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(read.affine, OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_channels_come_first(name, tmp_path):
    array = np.stack([VOXELS, VOXELS + 1], axis=-1)
    path = by_itk(tmp_path / name, array)
    np.testing.assert_array_equal(read_image(path).data, np.moveaxis(array, -1, 0))
    assert read_header(path).channels == 2


@pytest.mark.parametrize("names", ["RAS", "LPS", "PIR"])
def test_a_voxel_stays_where_it_is_in_the_body(names, tmp_path):
    """The brightest voxel has one place in millimetres, in whatever order the file stores the axes."""
    array = np.zeros((8, 6, 5), np.int16)
    array[6, 1, 3] = 9
    order = ornt_transform(io_orientation(OBLIQUE), axcodes2ornt(names)).tolist()
    nib.Nifti1Image(array, OBLIQUE).as_reoriented(order).to_filename(tmp_path / "a.nii.gz")
    read = read_image(tmp_path / "a.nii.gz")
    place = apply_affine(read.affine, np.argwhere(read.data[0].numpy() == 9)[0])
    np.testing.assert_allclose(place, apply_affine(OBLIQUE, [6, 1, 3]), atol=1e-4)
    assert "".join(read.orientation) == names


CODINGS = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("encoding", CODINGS)
@pytest.mark.parametrize("endian", ["little", "big"])
def test_nrrd_in_every_coding_and_order(encoding, endian, tmp_path):
    array = VOXELS.astype(">i2" if endian == "big" else "<i2")
    path = nrrd(tmp_path / "a.nrrd", array, {"encoding": encoding, "endian": endian}, encode=CODINGS[encoding])
    np.testing.assert_array_equal(read_image(path).data[0], VOXELS)


def test_nrrd_and_metaimage_as_text(tmp_path):
    words = " ".join(map(str, VOXELS.ravel(order="F"))).encode()
    path = nrrd(tmp_path / "a.nrrd", VOXELS, {"encoding": "ascii"}, encode=lambda _: words)
    np.testing.assert_array_equal(read_image(path).data[0], VOXELS)
    meta = by_itk(tmp_path / "a.mha", packed=False)
    head = meta.read_bytes()[: -VOXELS.nbytes].replace(b"BinaryData = True", b"BinaryData = False")
    meta.write_bytes(head + words)
    np.testing.assert_array_equal(read_image(meta).data[0], VOXELS)


@pytest.mark.parametrize("skip", [("byte skip", "-1"), ("byteskip", "7")])
def test_bytes_before_the_voxels_are_skipped(skip, tmp_path):
    path = nrrd(tmp_path / "a.nrrd", VOXELS, dict([skip]), encode=lambda voxels: b"1234567" + voxels)
    np.testing.assert_array_equal(read_image(path).data[0], VOXELS)


SEGMENTS = {
    "Segment1_ID": "b",
    "Segment1_Name": "Tumour, left (\u00e4)",
    "Segment1_LabelValue": "3",
    "Segment1_Layer": "1",
    "Segment0_ID": "a",
    "Segment0_Name": " liver ",
    "Segment0_LabelValue": "1",
    "Segment0_Layer": "0",
}


def test_segments_and_their_layers(tmp_path):
    layers = np.zeros((2, 4, 3, 2), np.uint8)
    layers[0, 1:3], layers[1, 2] = 1, 3
    path = nrrd(tmp_path / "a.seg.nrrd", layers, {"kinds": "list domain domain domain"}, SEGMENTS)
    assert segments(path) == {" liver ": Mark(path, 1, 0), "Tumour, left (\u00e4)": Mark(path, 3, 1)}
    assert list(segments(path)) == [" liver ", "Tumour, left (\u00e4)"]
    np.testing.assert_array_equal(read_labels(path).data, layers)


def test_segments_of_old_slicers_have_a_layer_each(tmp_path):
    keys = {name: value for name, value in SEGMENTS.items() if "Value" not in name and "Layer" not in name}
    path = nrrd(tmp_path / "a.seg.nrrd", np.ones((2, 4, 3, 2), np.uint8), {"kinds": "list space space space"}, keys)
    assert [(mark.value, mark.layer) for mark in segments(path).values()] == [(1, 0), (1, 1)]


def test_two_segments_of_one_name_are_refused_by_name(tmp_path):
    path = nrrd(tmp_path / "a.seg.nrrd", np.ones((4, 3, 2), np.uint8), keys=SEGMENTS | {"Segment1_Name": " liver "})
    with pytest.raises(BadFileError, match=r"a\.seg\.nrrd has several segments called ' liver '"):
        segments(path)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8", ">i4"])
def test_label_values_are_exact_integers(dtype, tmp_path):
    array = np.array([0, 7, 200, 104], dtype).reshape(2, 2, 1)
    read = read_labels(nifti(tmp_path / "a.nii.gz", array, np.eye(4)))
    assert read.data.dtype == torch.uint8
    np.testing.assert_array_equal(read.data[0], array)


@pytest.mark.parametrize(
    ("values", "dtype"), [([-1, 5], torch.int16), ([0, 300], torch.int16), ([0, 70000], torch.int32)]
)
def test_label_values_take_the_type_that_holds_them(values, dtype, tmp_path):
    read = read_labels(nifti(tmp_path / "a.nii", np.array(values, np.int32).reshape(2, 1, 1), np.eye(4)))
    assert read.data.dtype == dtype
    assert read.data.flatten().tolist() == values


@pytest.mark.parametrize("value", [0.25, np.nan, 1e12])
def test_label_values_that_are_no_labels_are_refused(value, tmp_path):
    path = nifti(tmp_path / "a.nii", np.array([0, 1, value, 2], np.float32).reshape(2, 2, 1), np.eye(4))
    with pytest.raises(ValueError, match=r"a\.nii has label values .*(0\.25|nan|1e\+12)"):
        read_labels(path)


def test_a_gzip_file_may_have_several_members(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]) + bytes(20))
    np.testing.assert_array_equal(read_image(path).data[0], VOXELS)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.nhdr", "a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97, 0.999])
def test_a_file_cut_off_anywhere_is_refused_by_name(name, share, tmp_path):
    """ITK fills such files with zeros."""
    path = tmp_path / name
    if name.endswith(("png", "jpg")):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    else:
        (nifti if ".nii" in name else by_itk)(path, np.tile(VOXELS, (2, 2, 4)))
    data = next((each for each in tmp_path.iterdir() if each.suffix in (".zraw", ".raw") or ".raw" in each.name), path)
    data.write_bytes(data.read_bytes()[: int(share * data.stat().st_size)])
    with pytest.raises(BadFileError, match=rf"{data.name}") as error:
        read_image(path)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_a_wrong_checksum_is_refused(name, tmp_path):
    """Nibabel stops at the last voxel and does not see it."""
    path = (nifti if ".nii" in name else by_itk)(tmp_path / name)
    damaged = bytearray(path.read_bytes())
    damaged[-6 if name != "a.mha" else -1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadFileError, match="damaged"):
        read_image(path)


def test_no_damaged_byte_ends_in_another_error(tmp_path):
    """Whatever byte of a header is wrong: the file is read, or it is a bad file."""
    rng = np.random.default_rng(1)
    originals = [nifti(tmp_path / "a.nii"), by_itk(tmp_path / "a.nrrd", packed=False), by_itk(tmp_path / "a.mha")]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    for path in [*originals, tmp_path / "a.png"]:
        whole = path.read_bytes()
        for place in rng.integers(0, min(len(whole), 400), 100):
            damaged = bytearray(whole)
            damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            for read in (read_image, read_labels):
                with contextlib.suppress(BadFileError):
                    read(path)


def test_a_header_that_declares_too_much_allocates_nothing(tmp_path):
    path = nifti(tmp_path / "bomb.nii.gz")
    whole = bytearray(gzip.decompress(path.read_bytes()))
    whole[42:48] = np.array([4000, 4000, 3000], "<i2").tobytes()
    path.write_bytes(gzip.compress(whole))
    tracemalloc.start()
    with pytest.raises(BadFileError, match=r"bomb\.nii\.gz declares 4000x4000x3000 voxels, 178\.8 GiB"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["bomb.nii.gz", "bomb.nrrd", "bomb.mha"])
def test_a_stream_that_inflates_beyond_the_header_costs_no_memory(name, tmp_path):
    path, zeros = tmp_path / name, 300 * 2**20
    if ".nii" in name:
        nifti(path)
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(zeros), 1))
    elif ".nrrd" in name:
        nrrd(path, VOXELS, {"encoding": "gzip"}, encode=lambda voxels: gzip.compress(voxels + bytes(zeros), 1))
    else:
        head = by_itk(path, packed=False).read_bytes()[: -VOXELS.nbytes]
        head = head.replace(b"CompressedData = False", b"CompressedData = True")
        path.write_bytes(head + zlib.compress(VOXELS.tobytes() + bytes(zeros), 1))
    tracemalloc.start()
    with pytest.raises(BadFileError, match=r"bomb.* holds more than the 480 bytes"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["../outside.raw", "/etc/hostname", "missing.raw"])
def test_voxels_are_looked_for_beside_their_header_only(name, tmp_path):
    (tmp_path / "outside.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "in").mkdir()
    path = by_itk(tmp_path / "in" / "a.mhd", packed=False)
    path.write_text(path.read_text().replace("a.raw", name))
    with pytest.raises(BadFileError, match=r"a\.mhd keeps its voxels in"):
        read_image(path)


def test_names(tmp_path):
    names = {"a.b.nii.gz": "a.b", "x.SEG.NRRD": "x", "x.nrrd": "x", "p.jpeg": "p", ".hidden.nii": ".hidden"}
    assert {name: stem(tmp_path / name) for name in names} == names
    assert [is_image(tmp_path / name) for name in names] == [True, True, True, True, False]
    assert not is_image(tmp_path)


def test_displacement_is_counted_in_voxels():
    other = OBLIQUE @ from_matvec(np.diag([1, 1, 1.01]), [0.25, 0, 0])
    assert displacement_voxels(OBLIQUE, other, (8, 6, 5)) == pytest.approx((0.25, 0.25))
    assert displacement_voxels(OBLIQUE, other, (8, 6, 101)) == pytest.approx((0.25, 1.0))


def test_rounded_spacings_are_one_grid_and_a_small_shift_is_not():
    shape = (300, 4, 4)
    affine, rounded = np.diag([0.78125, 1, 1, 1]), np.diag([0.7813, 1, 1, 1])
    assert one_grid(displacement_voxels(affine, rounded, shape))
    shifted = affine.copy()
    shifted[0, 3] = 0.01
    assert not one_grid(displacement_voxels(affine, shifted, shape))
    assert not one_grid(displacement_voxels(affine, np.diag([0.7820, 1, 1, 1]), shape))
