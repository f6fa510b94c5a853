import gzip
import os
import re
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import from_matvec
from nibabel.nifti1 import Nifti1Extension
from PIL import Image
from scipy.spatial.transform import Rotation

from lightning_atlas.data.cases import Case, DrawnOn, Mark
from lightning_atlas.data.slab import Slab
from lightning_atlas.data.survey.checks import check_case
from lightning_atlas.data.survey.damage import Defect, Note

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
NAMES = {"liver": 1, "spleen": 2}
FIELDS = nib.Nifti1Header.template_dtype.fields or {}


def save(path, array, affine=AFFINE, **fields):
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def scan(path, seed=0, **changes):
    return save(path, np.random.default_rng(seed).integers(-1000, 1000, (8, 8, 8)).astype(np.int16), **changes)


def labels(path, dtype="u1", **changes):
    array = np.zeros((8, 8, 8), dtype)
    array[2:4], array[5:7] = 1, 2
    return save(path, array, **changes)


@pytest.fixture
def case(tmp_path):
    return Case("one", "train", scan(tmp_path / "scan.nii"), labels(tmp_path / "label.nii"), NAMES)


def only(findings, kind: type[Defect | Note] = Defect):
    """Return the line of the only finding, and see to it that it is a line."""
    assert [type(each) for each in findings] == [kind], [str(each) for each in findings]
    assert "\n" not in str(findings[0])
    assert kind is Note or findings[0].remedy
    assert findings[0].subject == "one"
    return str(findings[0])


def poke(path, name, value, entry=0):
    """Write a field of a NIfTI header as it stands in the file, unchecked."""
    dtype, offset = FIELDS[name][:2]
    whole = bytearray(path.read_bytes())
    base = dtype.base
    place = offset + entry * base.itemsize
    whole[place : place + base.itemsize] = np.array(value, base.newbyteorder("<")).tobytes()
    path.write_bytes(whole)


def test_a_sound_case_has_nothing_to_say(case):
    assert check_case(case) == []


def make_folder(path):
    path.unlink()
    path.mkdir()


def broken_link(path):
    path.unlink()
    path.symlink_to("nowhere.nii")


FILES = {
    "does not exist": Path.unlink,
    "is a folder|holds no DICOM": make_folder,
    r"does not exist \(a link to nowhere\.nii\)": broken_link,
    r"is empty \(0 bytes\)": lambda path: path.write_bytes(b""),
    "is cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "is cut off in its header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "holds more than": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "is no NIfTI file inside": lambda path: path.write_bytes(b"<html>not found</html>" * 40),
    "is gzip-compressed": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
}


@pytest.mark.parametrize("found", FILES)
@pytest.mark.parametrize("role", ["image", "label"])
def test_a_damaged_file_is_one_line(found, role, case):
    path = getattr(case, role)
    FILES[found](path)
    line = only(check_case(case))
    assert str(path) in line
    assert re.search(found, line)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(case):
    case.image.unlink()
    os.mkfifo(case.image)
    assert "is no regular file" in only(check_case(case))


HEADERS = [
    ("dim", 9, 0, "9 axes"),
    ("dim", 2, 0, "has the axes 8x8"),
    ("dim", -8, 1, "has the axes -8x8x8"),
    ("dim", 0, 2, "has the axes 8x0x8"),
    ("dim", 9, 3, "is cut off"),
    ("dim", 7, 3, "holds more than"),
    ("datatype", 32, 0, "is complex64 and has 16 bits"),
    ("datatype", 77, 0, "unknown type 77"),
    ("bitpix", 8, 0, "is int16 and has 8 bits"),
    ("vox_offset", 100, 0, "begin at byte 100"),
    ("vox_offset", 1e12, 0, "begin at byte 1e"),
    ("vox_offset", np.nan, 0, "begin at byte nan"),
    ("pixdim", 0.0, 1, "has the spacing 0x1.5x2"),
    ("pixdim", -2.0, 3, "has the spacing 1x1.5x-2"),
    ("pixdim", np.nan, 2, "has the spacing 1xnanx2"),
    ("pixdim", 5.0, 2, "two things about its spacing: 1x1.5x2 mm (sform) and 1x5x2 mm"),
    ("srow_x", np.nan, 0, "affine that is not finite"),
    ("srow_x", np.inf, 3, "affine that is not finite"),
    ("srow_x", 0.0, 0, "impossible affine"),
    ("scl_slope", np.inf, 0, "scales its voxels by inf"),
    ("magic", b"ni1", 0, "is no NIfTI file inside"),
]


@pytest.mark.parametrize(("name", "value", "entry", "found"), HEADERS)
def test_a_header_that_contradicts_itself_or_the_file_is_one_line(name, value, entry, found, case):
    poke(case.image, name, value, entry)
    line = only(check_case(case))
    assert str(case.image) in line
    assert found in line


def test_a_spacing_of_metres_is_refused(case):
    scan(case.image, affine=np.diag([1, 1, 2000, 1]))
    assert "impossible affine (spacing 1x1x2000 mm)" in only(check_case(replace(case, label=None)))


def test_forms_that_mirror_each_other_are_refused(case):
    poke(case.image, "qform_code", 2)
    poke(case.image, "pixdim", -1.0, 0)
    assert "two things about its orientation: RAS (sform) and RAI (qform)" in only(check_case(case))


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_colours_and_complex_numbers_are_refused(dtype, case):
    save(case.image, np.zeros((8, 8, 8), dtype))
    assert "holds voxels of type" in only(check_case(case))


def test_two_channels_in_a_scan_and_five_axes_are_refused(case):
    save(case.image, np.random.default_rng(0).random((8, 8, 8, 2), np.float32))
    assert "holds 2 channels" in only(check_case(case))
    save(case.image, np.random.default_rng(0).random((8, 8, 8, 1, 3), np.float32))
    assert "has the axes 8x8x8x1x3" in only(check_case(case))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_intensities_that_are_no_finite_numbers_are_refused(value, case):
    array = np.arange(512.0).reshape(8, 8, 8)
    array[3, 4, 5] = value
    save(case.image, array)
    assert f"{case.image} has voxels that are no finite numbers" in only(check_case(case))


def test_intensities_are_looked_at_after_scaling(case):
    poke(case.image, "scl_slope", 3e38)
    poke(case.image, "scl_inter", 0.0)
    assert "no finite numbers" in only(check_case(case))


@pytest.mark.parametrize(
    ("value", "found"), [(0.5, "no whole numbers: 0.5"), (7, "values 7, which"), (-1, "values -1")]
)
def test_label_values_without_a_name_are_refused(value, found, case):
    array = np.zeros((8, 8, 8), np.float32)
    array[0, 0, 0] = value
    save(case.label, array)
    assert found in only(check_case(case))
    if value != 0.5:
        assert only(check_case(replace(case, ignore_value=value)), Note).endswith("no voxel above 0")


def test_an_empty_label_and_a_constant_scan_are_notes(case):
    save(case.label, np.zeros((8, 8, 8), np.uint8))
    assert "is empty" in only(check_case(case), Note)
    save(case.image, np.full((8, 8, 8), 3, np.uint8))
    assert "is 3 in every voxel" in only(check_case(replace(case, label=None)), Note)


SHIFTED = AFFINE + np.array([[0, 0, 0, 0.4], [0] * 4, [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    "affine", [SHIFTED, np.diag([-1, 1.5, 2, 1]), np.diag([1, 1.5, 2.01, 1]), AFFINE[[1, 0, 2, 3]]]
)
def test_a_label_on_another_grid_is_told_with_both_grids(affine, case):
    labels(case.label, affine=affine)
    line = only(check_case(case))
    assert line.count("shape (8, 8, 8)") == 2
    assert "torchio.Resample('scan.nii')(torchio.LabelMap('label.nii'))" in line


def test_a_label_of_another_shape_is_told(case):
    save(case.label, np.ones((8, 8, 7), np.uint8))
    assert "shape (8, 8, 7), RAS, spacing [1.0, 1.5, 2.0] mm" in only(check_case(case))


def test_noise_in_the_header_is_snapped_and_told(case):
    affine = AFFINE.copy()
    affine[0, 3] = 5e-4
    labels(case.label, affine=affine)
    assert "off its scan's grid by 0.0005 voxels" in only(check_case(case), Note)


def masks(folder, **changes):
    files = {name: folder / f"{name}.nii.gz" for name in ("liver", "tumour")}
    for path in files.values():
        labels(path, **changes)
    return {name: Mark(path) for name, path in files.items()}


def test_masks_and_scribbles_are_looked_at_too(case, tmp_path):
    many = replace(case, label=None, values={}, masks=masks(tmp_path))
    assert check_case(many) == []
    (tmp_path / "tumour.nii.gz").unlink()
    assert "tumour.nii.gz does not exist" in only(check_case(many))
    labels(tmp_path / "tumour.nii.gz", affine=SHIFTED)
    assert "tumour.nii.gz lies on another grid" in only(check_case(many))
    drawn = replace(case, drawn_on=(DrawnOn(mask=tmp_path / "scribbles.nii"),))
    assert "scribbles.nii does not exist" in only(check_case(drawn))


def test_a_layer_that_a_file_has_not_is_told(case, tmp_path):
    layer = {"liver": Mark(labels(tmp_path / "mask.nii"), 1, layer=3)}
    assert "holds 1 layers, where 4 are expected" in only(check_case(replace(case, label=None, values={}, masks=layer)))


def segmentation(path, origin=(0.0, 0.0, 0.0), **keys):
    image = SimpleITK.GetImageFromArray(np.ones((2, 3, 4), np.uint8))
    image.SetOrigin(origin)
    for name, value in {"Segment0_ID": "a", "Segment0_Name": "liver", "Segment0_LabelValue": "1"}.items():
        image.SetMetaData(name, keys.get(name, value))
    SimpleITK.WriteImage(image, str(path), True)
    return path


def test_a_cropped_segmentation_may_lie_anywhere_in_its_scan(case, tmp_path):
    path = segmentation(tmp_path / "a.seg.nrrd", (-5.0, -5.0, 5.0))
    inside = replace(case, label=None, values={}, masks={"liver": Mark(path, 1)})
    assert check_case(inside) == []
    segmentation(path, (50.0, 0.0, 0.0))
    assert "a.seg.nrrd lies wholly outside its scan" in only(check_case(inside))


def test_channels_on_two_grids_are_told(case, tmp_path):
    both = replace(case, image={"t1": case.image, "t2": scan(tmp_path / "t2.nii", 1, affine=SHIFTED)})
    assert "t2.nii lies on another grid" in only(check_case(both))


def test_boxes_outside_the_scan_are_told(case):
    inside, outside = (0.0, 0.0, 0.0, 8.0, 8.0, 8.0, 1.0), (0.0, 0.0, 3.0, 8.0, 8.0, 9.0, 1.0)
    assert check_case(replace(case, boxes=(inside,))) == []
    assert "box (0.0, 0.0, 3.0, 8.0, 8.0, 9.0, 1.0)" in only(check_case(replace(case, boxes=(inside, outside))))


@pytest.fixture
def slab(tmp_path):
    """Five slices of which each is made of two, and a box on the one in the middle."""
    for number in range(1, 8):
        values = np.random.default_rng(number).integers(0, 999, (6, 8), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    slab = Slab((1.0, 1.0, 5.0), planes=5, interval_mm=2.5)
    return Case("one", "train", tmp_path / "4.png", slab=slab, boxes=((0.0, 0.0, 2.0, 8.0, 6.0, 3.0, 0.0),))


def test_boxes_of_a_slab_lie_among_its_planes(slab):
    assert check_case(slab) == []
    assert "8x6x5 voxels" in only(check_case(replace(slab, boxes=((0.0, 0.0, 4.0, 8.0, 6.0, 6.0, 0.0),))))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.zeros((6, 7), np.uint16), "unlike sizes"),
        (np.zeros((6, 8, 3), np.uint8), "holds colours"),
        (None, "damaged"),
    ],
)
def test_a_bad_neighbour_of_a_slab_is_told(slab, tmp_path, values, found):
    if values is None:
        (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    else:
        Image.fromarray(values).save(tmp_path / "5.png")
    assert found in only(check_case(slab))


def test_a_crop_holds_its_scan_and_what_four_readers_drew(tmp_path):
    answers: Any = {f"answer{n}": np.eye(8, dtype=bool)[None].repeat(8, 0) for n in (1, 2, 3, 4)}
    voxel = np.random.default_rng(0).integers(0, 255, (8, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", voxel=voxel, **answers)
    drawn = Case("one", "train", tmp_path / "a.npz", masks={"nodule": Mark(tmp_path / "a.npz", 1)})
    assert check_case(drawn) == []
    fifth = {"nodule": Mark(tmp_path / "a.npz", 1, layer=4)}
    assert "holds 4 layers, where 5 are expected" in only(check_case(replace(drawn, masks=fifth)))


def test_every_defect_of_a_case_is_told_in_one_pass(case, tmp_path):
    masked = replace(
        case, image={"t1": case.image, "t2": scan(tmp_path / "t2.nii", 1)}, values={}, masks=masks(tmp_path)
    )
    poke(tmp_path / "t2.nii", "pixdim", 0.0, 1)
    case.label.write_bytes(case.label.read_bytes()[:-5])
    labels(tmp_path / "liver.nii.gz", affine=SHIFTED)
    (tmp_path / "tumour.nii.gz").unlink()
    files = {each.file.name for each in check_case(masked)}
    assert files == {"t2.nii", "label.nii", "liver.nii.gz", "tumour.nii.gz"}


SOUND = {
    "float labels": lambda case: labels(case.label, "f8"),
    "64-bit labels": lambda case: labels(case.label, "i8"),
    "16-bit labels": lambda case: labels(case.label, "u2"),
    "nothing scaled, as nibabel writes it": lambda case: poke(case.image, "scl_slope", np.nan),
    "a scale": lambda case: (poke(case.image, "scl_slope", 0.5), poke(case.image, "scl_inter", -3.0)),
    "an offset behind an extension": lambda case: extend(case.image),
    "another template space": lambda case: (poke(case.image, "sform_code", 4), poke(case.image, "pixdim", 5.0, 1)),
    "a time axis of one": lambda case: (poke(case.image, "dim", 4, 0), poke(case.image, "dim", 1, 4)),
}


def extend(path):
    image = nib.Nifti1Image.from_filename(path)
    extended = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
    extended.header.extensions.append(Nifti1Extension(4, b"a comment"))
    extended.to_filename(path)


@pytest.mark.parametrize("what", SOUND)
def test_what_is_sound_but_unusual_is_no_defect(what, case):
    SOUND[what](case)
    assert [each for each in check_case(case) if isinstance(each, Defect)] == []


def test_grids_that_are_sound_but_unusual_are_no_defect(case):
    turn = Rotation.from_euler("zyx", (0.4, 0.1, 0.2)).as_matrix()
    for affine in (turn @ np.diag([1, 1, 1]), turn @ np.diag([0.2, 0.2, 10]), turn @ np.diag([-1, 2, -3])):
        whole = from_matvec(affine, [1000, -2000, 3000])
        scan(case.image, affine=whole)
        labels(case.label, affine=whole)
        assert check_case(case) == []


def test_one_slice_capital_endings_and_odd_names_are_no_defect(tmp_path):
    folder = tmp_path / "two words \u00e4\u00e9 (1)"
    folder.mkdir()
    save(folder / "a.nii.gz", np.arange(64, dtype=">i2").reshape(8, 8, 1)).rename(folder / "SCAN.NII.GZ")
    save(folder / "b.nii.gz", np.ones((8, 8, 1), np.uint8)).rename(folder / "Label 1.Nii.Gz")
    assert check_case(Case("one", "train", folder / "SCAN.NII.GZ", folder / "Label 1.Nii.Gz", NAMES)) == []


def test_a_picture_with_its_labels_is_sound(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.ones((5, 7), np.uint8)).save(tmp_path / "label.png")
    assert check_case(Case("one", "train", tmp_path / "a.png", tmp_path / "label.png", NAMES)) == []
    Image.fromarray(np.ones((7, 5), np.uint8)).save(tmp_path / "label.png")
    line = only(check_case(Case("one", "train", tmp_path / "a.png", tmp_path / "label.png", NAMES)))
    assert "shape (5, 7, 1)" in line


def test_a_bomb_is_refused_before_it_costs_memory(case, tmp_path):
    """A header of 100 GB, and a small header before gigabytes of zeros."""
    path = tmp_path / "bomb.nii.gz"
    whole = bytearray(case.image.read_bytes())
    struct.pack_into("<3h", whole, 42, 5000, 5000, 1000)
    path.write_bytes(gzip.compress(bytes(whole)))
    with gzip.GzipFile(tmp_path / "grows.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(case.image.read_bytes())
        for _ in range(400):
            stream.write(bytes(2**20))
    tracemalloc.start()
    lines = [only(check_case(replace(case, image=each, label=None))) for each in (path, tmp_path / "grows.nii.gz")]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert "declares 5000x5000x1000 voxels, 93.13 GiB" in lines[0]
    assert "grows.nii.gz holds more than the 1024 bytes" in lines[1]
