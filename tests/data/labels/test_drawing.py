"""The drawing is decoded voxel by voxel and compared with what the words of the manifest say of each voxel."""

import tracemalloc
from dataclasses import replace
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torchio as tio

from lightning_atlas.data.cases import Case, DrawnOn, Mark
from lightning_atlas.data.labels.drawing import drawn_planes, looks_dense, read_drawing, restrict

SHAPE = (6, 7, 8)
CODES = ["".join(codes) for codes in product("RL", "AP", "SI")] + ["PIR", "SRA", "ILP"]


def write(path, array, affine=None):
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def write_segments(path, layers, affine):
    """A `.seg.nrrd` by hand: layers first, RAS."""
    *columns, origin = (f"({','.join(str(each) for each in column)})" for column in affine[:3].T)
    header = [
        "NRRD0004",
        "type: uchar",
        "dimension: 4",
        "space: right-anterior-superior",
        f"sizes: {' '.join(str(size) for size in layers.shape)}",
        f"space directions: none {' '.join(columns)}",
        "kinds: list domain domain domain",
        "encoding: raw",
        f"space origin: {origin}",
    ]
    path.write_bytes("\n".join([*header, "", ""]).encode("ascii") + layers.astype(np.uint8).tobytes(order="F"))
    return path


def picture(shape=SHAPE, affine=None):
    return tio.ScalarImage(tensor=np.zeros((1, *shape), np.float32), affine=np.eye(4) if affine is None else affine)


def masks(names, shape=SHAPE, seed=0, share=0.3):
    random = np.random.default_rng(seed)
    return {name: random.random(shape) < share for name in names}


def of_masks(folder, drawings, affine=None, **changes):
    marks = {
        name: Mark(write(folder / f"{name}.nii.gz", each.astype(np.uint8), affine)) for name, each in drawings.items()
    }
    return Case("one", "train", folder / "scan.nii.gz", masks=marks, **changes)


def of_map(folder, array, **changes):
    case = Case("one", "train", folder, write(folder / "label.nii.gz", array), {"a": 1, "b": 2})
    return replace(case, **changes)


def decoded(drawing):
    """For each name: its state and whether it is drawn, as volumes."""
    return {
        name: (drawing.states[:, column][drawing.rows], drawing.drawn[:, column][drawing.rows])
        for column, name in enumerate(drawing.names)
    }


def check(drawing, states, drawn):
    assert drawing.states[0].tolist() == [-1] * len(drawing.names)
    assert not drawing.drawn[0].any()
    assert tuple(states) == drawing.names
    for name, (state, decided) in decoded(drawing).items():
        assert np.array_equal(state, states[name]), name
        assert np.array_equal(decided, drawn[name]), name


def values_map(seed=0, most=3, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, most, shape).astype(np.uint8)


def test_a_label_map_is_a_row_for_each_value_in_their_order(tmp_path):
    values = np.array([0, 4, 9, 7], np.uint8).reshape(4, 1, 1)
    case = of_map(tmp_path, values, values={"tail": 9, "head": 4}, ignore_value=7)
    drawing = read_drawing(case, picture((4, 1, 1)))
    assert drawing.names == ("head", "tail")
    assert drawing.rows.flatten().tolist() == [1, 2, 3, 0]
    assert drawing.rows.dtype == np.uint8
    assert drawing.states.tolist() == [[-1, -1], [0, 0], [1, 0], [0, 1]]
    assert drawing.drawn.tolist() == [[False, False], [True, True], [True, True], [True, True]]


def test_what_lies_under_a_name_that_nobody_looked_for_is_unknown_but_none_of_the_others(tmp_path):
    values = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)
    case = of_map(tmp_path, values, values={"a": 1, "b": 2, "c": 3}, drawn=("a", "c"))
    drawing = read_drawing(case, picture((4, 1, 1)))
    assert drawing.states[drawing.rows.flatten()].tolist() == [[0, -1, 0], [1, 0, 0], [0, -1, 0], [0, 0, 1]]
    assert drawing.drawn[1:].tolist() == [[True, False, True]] * 3


def test_zero_may_be_the_value_to_ignore_and_then_only_scribbles_are_known(tmp_path):
    values = np.array([0, 1, 2, 1], np.uint8).reshape(4, 1, 1)
    drawing = read_drawing(of_map(tmp_path, values, ignore_value=0), picture((4, 1, 1)))
    assert drawing.rows.flatten().tolist() == [0, 1, 2, 1]
    assert drawing.states[1:].tolist() == [[1, 0], [0, 1]]


def test_large_and_negative_values_are_values_too(tmp_path):
    values = np.array([0, 70000, -5, 3], np.int32).reshape(4, 1, 1)
    drawing = read_drawing(of_map(tmp_path, values, values={"a": 70000, "b": 3}, ignore_value=-5), picture((4, 1, 1)))
    assert drawing.rows.flatten().tolist() == [1, 3, 0, 2]


def test_a_value_without_a_name_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"label\.nii\.gz has the values \[2\], which no name has"):
        read_drawing(of_map(tmp_path, values_map(), values={"a": 1}), picture())


def test_a_scan_without_labels_is_unknown(tmp_path):
    drawing = read_drawing(Case("one", "predict", tmp_path), picture())
    assert not drawing.rows.any()
    assert drawing.states.shape == (1, 0)


@pytest.mark.parametrize("drawn", [None, ("a", "c")])
def test_masks_may_overlap_and_imply_nothing_for_each_other(tmp_path, drawn):
    given = masks("abc")
    drawing = read_drawing(of_masks(tmp_path, given, drawn=drawn), picture())
    here = {name: drawn is None or name in drawn for name in given}
    states = {name: np.where(here[name], each, -1) for name, each in given.items()}
    check(drawing, states, {name: np.full(SHAPE, here[name]) for name in given})
    assert len(drawing.states) == 1 + 2 ** sum(here.values())


def test_only_combinations_that_occur_get_rows(tmp_path):
    given = masks([f"m{number}" for number in range(20)], share=0.05)
    drawing = read_drawing(of_masks(tmp_path, given), picture())
    combinations = np.unique(np.stack(list(given.values())).reshape(20, -1).T, axis=0)
    assert len(drawing.states) == 1 + len(combinations)
    check(drawing, given, dict.fromkeys(given, np.ones(SHAPE, bool)))


def test_a_label_map_and_masks_go_together(tmp_path):
    values, given = values_map(), masks(["tumor"])
    case = of_map(tmp_path, values, masks=of_masks(tmp_path, given).masks, ignore_value=2, values={"a": 1})
    everywhere = np.ones(SHAPE, bool)
    check(
        read_drawing(case, picture()),
        {"a": np.where(values == 2, -1, values == 1), "tumor": given["tumor"]},
        {"a": values != 2, "tumor": everywhere},
    )


def test_segments_of_one_layer_exclude_each_other_and_those_of_another_overlap(tmp_path):
    layers = np.stack([values_map(1), values_map(2, most=2)])
    file = write_segments(tmp_path / "label.seg.nrrd", layers, np.eye(4))
    marks = {"a": Mark(file, 1), "b": Mark(file, 2), "c": Mark(file, 1, layer=1)}
    case = Case("one", "train", tmp_path, masks=marks, drawn=("a",))
    drawing = read_drawing(case, picture())
    a, everywhere = layers[0] == 1, np.ones(SHAPE, bool)
    check(
        drawing,
        {"a": a, "b": np.where(a, 0, -1), "c": np.full(SHAPE, -1)},
        {"a": everywhere, "b": ~everywhere, "c": ~everywhere},
    )
    assert drawing.layers == (0, 0, 1)
    states = {"a": a, "b": layers[0] == 2, "c": layers[1] == 1}
    check(read_drawing(replace(case, drawn=None), picture()), states, dict.fromkeys("abc", everywhere))


def test_a_file_is_read_once(tmp_path, monkeypatch):
    from lightning_atlas.data.labels import drawing as module

    file = write_segments(tmp_path / "label.seg.nrrd", np.stack([values_map(1), values_map(2)]), np.eye(4))
    marks = {f"{layer}{value}": Mark(file, value, layer) for layer in (0, 1) for value in (1, 2)}
    read = []
    own = module.read_labels
    monkeypatch.setattr(module, "read_labels", lambda path, watch: (read.append(path), own(path, watch))[1])
    case = Case("one", "train", tmp_path, masks=marks)
    read_drawing(case, picture())
    assert read == [file]
    with pytest.raises(ValueError, match="has 2 layers"):
        read_drawing(replace(case, masks={"a": Mark(file, 1, layer=2)}), picture())


def stored(array, codes):
    """The same anatomy (an array in RAS, 1 mm) stored in another orientation: array and affine."""
    orientation = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    affine = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.orientations.apply_orientation(array, orientation), affine


def as_ras(array, affine):
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(array, affine)).dataobj)


TILT = np.array([[0.95, -0.3, 0, 0], [0.3, 0.95, 0.1, 0], [0, -0.1, 1, 0], [0, 0, 0, 1.0]])
PLACES = [
    (DrawnOn(planes=(0, 3, 4)), lambda i, j, k: np.isin(k, (0, 3, 4))),
    (DrawnOn(planes=(5,), axis="i"), lambda i, j, k: i == 5),
    (DrawnOn(every=3, axis="j"), lambda i, j, k: j % 3 == 0),
    (DrawnOn(every=2, planes=(1, 2, 4)), lambda i, j, k: np.isin(k, (2, 4))),
]


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize(("place", "inside"), PLACES)
def test_planes_count_towards_the_positive_end_however_the_file_is_stored(codes, place, inside, tmp_path):
    """Nibabel's own reorientation is the referee; the scan is oblique, too."""
    drawn_here = inside(*np.indices(SHAPE))
    values, affine = stored(values_map(), codes)
    affine = TILT @ affine
    case = replace(of_map(tmp_path, values), label=write(tmp_path / "label.nii.gz", values, affine), drawn_on=(place,))
    drawing = read_drawing(case, picture(values.shape, affine))
    for number, name in enumerate(drawing.names, 1):
        state, decided = (as_ras(each.astype(np.int16), affine) for each in decoded(drawing)[name])
        assert np.array_equal(state, np.where(drawn_here, values_map() == number, -1))
        assert np.array_equal(decided, drawn_here)


def test_a_plane_with_a_label_was_drawn_whole(tmp_path):
    given = {name: np.zeros(SHAPE, bool) for name in "ab"}
    given["a"][1, 2, 3] = given["b"][0, 0, 5] = given["b"][4, 4, 3] = True
    drawing = read_drawing(of_masks(tmp_path, given, drawn_on=(DrawnOn(labelled=True),)), picture())
    there = np.broadcast_to(np.isin(np.arange(8), (3, 5)), SHAPE)
    check(drawing, {name: np.where(there, each, -1) for name, each in given.items()}, dict.fromkeys("ab", there))
    assert drawn_planes(drawing) == {"a": 2, "b": 2}


def test_one_structure_everywhere_and_another_on_some_planes(tmp_path):
    given = masks("ab")
    case = of_masks(tmp_path, given, drawn_on=(DrawnOn(every=4, names=("b",)),))
    there = np.broadcast_to(np.arange(8) % 4 == 0, SHAPE)
    check(
        read_drawing(case, picture()),
        {"a": given["a"], "b": np.where(there, given["b"], -1)},
        {"a": np.ones(SHAPE, bool), "b": there},
    )


def test_in_a_label_map_a_structure_outside_its_planes_still_is_none_of_the_others(tmp_path):
    values = values_map()
    case = of_map(tmp_path, values, drawn_on=(DrawnOn(planes=(2,), names=("b",)),))
    there = np.broadcast_to(np.arange(8) == 2, SHAPE)
    check(
        read_drawing(case, picture()),
        {"a": values == 1, "b": np.where(there, values == 2, np.where(values == 1, 0, -1))},
        {"a": np.ones(SHAPE, bool), "b": there},
    )


def test_scribbles_and_labelled_planes_of_single_structures(tmp_path):
    given, scribbles = masks("ab", share=0.02), masks(["s"], seed=5)["s"]
    region = write(tmp_path / "scribbles.nii.gz", scribbles.astype(np.uint8))
    places = (DrawnOn(mask=region, names=("a",)), DrawnOn(labelled=True, names=("b",)))
    planes = np.broadcast_to(given["b"].any(axis=(0, 1)), SHAPE)
    drawing = read_drawing(of_masks(tmp_path, given, drawn_on=places), picture())
    states = {"a": np.where(scribbles, given["a"], -1), "b": np.where(planes, given["b"], -1)}
    check(drawing, states, {"a": scribbles, "b": planes})
    assert (drawing.rows == 0).sum() == (~scribbles & ~planes).sum()


def test_a_region_is_no_structure(tmp_path):
    given = masks(["a", "region"])
    case = of_masks(tmp_path, given, drawn_on=(DrawnOn(segment="region"),), drawn=("a",))
    check(read_drawing(case, picture()), {"a": np.where(given["region"], given["a"], -1)}, {"a": given["region"]})


def test_a_region_is_no_label_that_makes_a_plane_drawn(tmp_path):
    given = {"a": np.zeros(SHAPE, bool), "region": np.ones(SHAPE, bool)}
    given["a"][2, 2, 2], given["region"][0] = True, False
    case = of_masks(tmp_path, given, drawn_on=(DrawnOn(segment="region", labelled=True),))
    there = given["region"] & (np.arange(8) == 2)
    check(read_drawing(case, picture()), {"a": np.where(there, given["a"], -1)}, {"a": there})


def test_structures_that_were_cut_out_of_a_region_belong_to_it(tmp_path):
    values = values_map()
    case = of_map(tmp_path, values, values={"a": 1, "region": 2}, drawn_on=(DrawnOn(segment="region"),))
    check(read_drawing(case, picture()), {"a": np.where(values == 0, -1, values == 1)}, {"a": values != 0})


def test_places_that_do_not_fit_are_told(tmp_path):
    case = of_map(tmp_path, values_map())
    with pytest.raises(ValueError, match=r"planes \[8\], but the image has planes 0 to 7"):
        read_drawing(replace(case, drawn_on=(DrawnOn(planes=(3, 8)),)), picture())
    with pytest.raises(ValueError, match=r"speaks of roi, but the labels have a, b"):
        read_drawing(replace(case, drawn_on=(DrawnOn(segment="roi"),)), picture())
    with pytest.raises(ValueError, match="speaks of c"):
        read_drawing(replace(case, drawn_on=(DrawnOn(labelled=True, names=("c",)),)), picture())


def test_restricting_later_is_restricting_at_once(tmp_path):
    case = of_map(tmp_path, values_map(), drawn_on=(DrawnOn(every=3),))
    later = restrict(read_drawing(replace(case, drawn_on=()), picture()), case.drawn_on, picture())
    once = read_drawing(case, picture())
    assert np.array_equal(later.rows, once.rows)
    assert np.array_equal(later.states, once.states)


@pytest.mark.parametrize("name", ["label.nii.gz", "label.nrrd"])
def test_image_and_label_on_two_grids_are_refused(tmp_path, name):
    file = tmp_path / name
    tio.LabelMap(tensor=values_map()[None], affine=np.diag([1, 1, 2, 1.0])).save(file)
    with pytest.raises(ValueError, match=r"different grids: shape \(6, 7, 8\), RAS, spacing \[1\.0, 1\.0, 1\.0\]"):
        read_drawing(Case("one", "train", tmp_path, file, {"a": 1, "b": 2}), picture())


@pytest.mark.parametrize(("shift", "notes"), [(0.0, 0), (1e-7, 0), (5e-4, 1)])
def test_noise_of_headers_is_snapped_and_said(tmp_path, shift, notes):
    affine = np.eye(4)
    affine[2, 3] = shift
    case = of_map(tmp_path, values_map())
    write(case.label, values_map(), affine)
    drawing = read_drawing(case, picture())
    assert len(drawing.notes) == notes
    check(drawing, {"a": values_map() == 1, "b": values_map() == 2}, dict.fromkeys("ab", np.ones(SHAPE, bool)))
    affine[2, 3] = 3e-3
    write(case.label, values_map(), affine)
    with pytest.raises(ValueError, match="different grids"):
        read_drawing(case, picture())


@pytest.mark.parametrize("codes", CODES)
def test_a_cropped_segmentation_is_put_back_to_the_voxel(codes, tmp_path):
    whole = np.zeros((12, 11, 10), np.uint8)
    whole[2:8, 3:10, 1:9] = values_map()
    cropped, affine = stored(whole[2:8, 3:10, 1:9], codes)
    placed = TILT @ np.array([[1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 1], [0, 0, 0, 1.0]]) @ affine
    file = write_segments(tmp_path / "label.seg.nrrd", cropped[None], placed)
    case = Case("one", "train", tmp_path, masks={"a": Mark(file, 1), "b": Mark(file, 2)})
    drawing = read_drawing(case, picture(whole.shape, TILT))
    assert drawing.notes == ()
    check(drawing, {"a": whole == 1, "b": whole == 2}, dict.fromkeys("ab", np.ones(whole.shape, bool)))


def test_a_segmentation_on_another_grid_is_resampled_and_said(tmp_path):
    """A ball drawn on a finer, tilted grid lies where it was, in millimetres."""
    fine = np.diag([0.8, 0.8, 0.8, 1.0])
    fine[:3, 3] = (-1.0, 2.0, 0.5)
    fine = np.array(TILT) @ fine
    centre = (TILT @ [10, 10, 10, 1])[:3]
    file = write_segments(tmp_path / "label.seg.nrrd", ball((28, 26, 27), fine, centre)[None], fine)
    drawing = read_drawing(Case("one", "train", tmp_path, masks={"a": Mark(file, 1)}), picture((20, 21, 22)))
    expected = ball((20, 21, 22), np.eye(4), centre)
    found = decoded(drawing)["a"][0] == 1
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.95
    assert "resampled to the image's grid" in drawing.notes[0]
    assert (decoded(drawing)["a"][0] >= 0).all()


def test_a_segmentation_ends_where_its_extent_ends(tmp_path):
    file = write_segments(tmp_path / "label.seg.nrrd", np.ones((1, 6, 6, 6)), np.diag([0.75, 0.75, 0.75, 1.0]))
    drawing = read_drawing(Case("one", "train", tmp_path, masks={"a": Mark(file, 1)}), picture((9, 9, 9)))
    assert np.array_equal(decoded(drawing)["a"][0] == 1, (np.indices((9, 9, 9)) < 5.5 * 0.75).all(axis=0))


def ball(shape, affine, centre):
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return ((places - centre) ** 2).sum(axis=-1) < 36


def test_a_segmentation_beside_the_image_is_told(tmp_path):
    away, near = np.eye(4), np.eye(4)
    away[0, 3], near[0, 3] = 50, 3
    case = Case("one", "train", tmp_path, masks={"a": Mark(tmp_path / "label.seg.nrrd", 1)})
    write_segments(tmp_path / "label.seg.nrrd", np.ones((1, *SHAPE)), away)
    with pytest.raises(ValueError, match="beside the image only"):
        read_drawing(case, picture())
    write_segments(tmp_path / "label.seg.nrrd", np.ones((1, *SHAPE)), near)
    assert "168 labelled voxels lie beside the image" in read_drawing(case, picture()).notes[0]


def test_a_densely_drawn_scan_does_not_look_like_planes(tmp_path):
    dense, sparse = np.zeros((4, 4, 30), np.uint8), np.zeros((4, 4, 30), np.uint8)
    dense[1:3, 1:3, 5:25] = sparse[1:3, 1:3, 5:25:4] = 1
    for values, expected in ((dense, True), (sparse, False)):
        case = of_map(tmp_path, values, drawn_on=(DrawnOn(labelled=True),))
        drawing = read_drawing(case, picture(values.shape))
        assert looks_dense(drawing) is expected
        assert drawn_planes(drawing)["a"] == (20 if expected else 5)


def test_memory_does_not_grow_with_the_number_of_masks(tmp_path):
    shape = (64, 64, 64)
    peaks = {}
    for count in (4, 24):
        case = of_masks(tmp_path, masks([f"m{n}" for n in range(count)], shape, share=0.02))
        image = picture(shape)
        tracemalloc.start()
        read_drawing(case, image)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[24] < 1.3 * peaks[4]
    assert peaks[24] < 30 * np.prod(shape)
