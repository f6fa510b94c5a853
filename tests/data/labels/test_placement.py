"""SciPy's interpolation of each membership and loops over planes are the referees."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from lightning_atlas.data import EmbeddedScan
from lightning_atlas.data.formats import read_image
from lightning_atlas.data.labels.drawing import Drawing, read_drawing
from lightning_atlas.data.labels.placement import place

CODES = ["".join(codes) for codes in product("RL", "AP", "SI")] + ["PIR", "SRA", "ILP"]
SHAPE = (11, 12, 13)
SPACING = np.diag([0.8, 1.1, 3.0, 1.0])
CLEAR = 2e-3
"""Shares closer than this are not compared: places are rounded to a ten-thousandth of a voxel."""


def smooth(names, shape=SHAPE, seed=0):
    random = np.random.default_rng(seed)
    return {name: gaussian_filter(random.standard_normal(shape), 1.2) for name in names}


def disjoint(names, shape=SHAPE, seed=0):
    """Structures that exclude each other, with background between them."""
    fields = np.stack([np.full(shape, 0.1), *smooth(names, shape, seed).values()])
    return {name: fields.argmax(axis=0) == number for number, name in enumerate(names, 1)}


def overlapping(names, shape=SHAPE, seed=0):
    return {name: field > 0.02 for name, field in smooth(names, shape, seed).items()}


def drawing_of(inside, known=None, affine=SPACING, layers=None):
    """A drawing of masks and of where each is known; a table of what occurs, unknown first."""
    shape = next(iter(inside.values())).shape
    known = {} if known is None else known
    states = [np.where(known.get(name, True), each, -1).ravel() for name, each in inside.items()]
    unknown = np.full((len(inside), 1), -1)
    table, rows = np.unique(np.concatenate([unknown, np.stack(states)], axis=1).T, axis=0, return_inverse=True)
    return Drawing(
        rows.ravel()[1:].reshape(shape).astype(np.uint8),
        affine,
        tuple(inside),
        table.astype(np.int8),
        table >= 0,
        tuple(range(len(inside))) if layers is None else layers,
    )


def decoded(drawing):
    return {name: drawing.states[:, column][drawing.rows] for column, name in enumerate(drawing.names)}


def zoomed(affine, shape, zooms, edges=True) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A grid of other spacing; the outer edges of both coincide, or the centres of the first voxels."""
    change = np.diag([*(1 / np.array(zooms)), 1])
    if edges:
        change[:3, 3] = (1 / np.array(zooms) - 1) / 2
    i, j, k = (max(1, round(size * zoom)) for size, zoom in zip(shape, zooms, strict=True))
    return affine @ change, (i, j, k)


def stored(array, affine, codes):
    """The same anatomy (an array in RAS) stored in another orientation: array and affine."""
    orientation = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    back = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.orientations.apply_orientation(array, orientation), affine @ back


def turned(drawing, codes):
    rows, affine = stored(drawing.rows, drawing.affine, codes)
    return Drawing(rows, affine, drawing.names, drawing.states, drawing.drawn, drawing.layers)


def places(source, affine, shape):
    """Where each voxel of a grid lies in the source's voxels (3 i j k)."""
    back = np.linalg.inv(source.affine) @ affine
    return np.tensordot(back[:3, :3], np.indices(shape), 1) + back[:3, 3][:, None, None, None]


def shares(inside, where):
    return map_coordinates(inside.astype(float), where, order=1, mode="nearest")


def tilted(affine, degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = affine @ [*((np.array(SHAPE) - 1) / 2), 1]
    there, back = np.eye(4), np.eye(4)
    there[:3, 3], back[:3, 3] = middle[:3], -middle[:3]
    return there @ turn @ back @ affine


GRIDS = [
    zoomed(SPACING, SHAPE, zooms, edges)
    for zooms in [(0.5, 0.5, 0.5), (0.75, 0.75, 1), (1, 1, 0.75), (1.5, 1.5, 1.5), (1.3, 0.6, 2.2)]
    for edges in (True, False)
]
OBLIQUE = [(tilted(SPACING, 20), SHAPE), (zoomed(tilted(SPACING, -35), SHAPE, (1.5, 0.8, 1.2)))]


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("start", [(0, 0, 0), (2, -3, 4)])
def test_voxels_that_coincide_keep_their_rows(codes, start):
    """Nibabel's reorientation, NumPy's padding and slicing are the referees."""
    drawing = drawing_of(overlapping("abc"))
    shift = np.eye(4)
    shift[:3, 3] = start
    placed = place(turned(drawing, codes), drawing.affine @ shift, (9, 15, 12))
    padded = np.pad(drawing.rows, 20)
    expected = padded[tuple(slice(20 + at, 20 + at + size) for at, size in zip(start, (9, 15, 12), strict=True))]
    assert np.array_equal(placed.rows, expected)
    assert np.array_equal(placed.states, drawing.states)


@pytest.mark.parametrize(("affine", "shape"), GRIDS + OBLIQUE)
def test_of_structures_that_exclude_each_other_the_largest_share_wins(affine, shape):
    inside = disjoint("abcde")
    drawing = drawing_of(inside, layers=(0,) * 5)
    placed = place(drawing, affine, shape)
    where = places(drawing, affine, shape)
    each = [shares(~np.any(list(inside.values()), axis=0), where), *(shares(one, where) for one in inside.values())]
    first, second = np.sort(each, axis=0)[-1], np.sort(each, axis=0)[-2]
    within = np.all([(x > -0.499) & (x < size - 0.501) for x, size in zip(where, SHAPE, strict=True)], axis=0)
    beyond = np.any([(x < -0.51) | (x > size - 0.49) for x, size in zip(where, SHAPE, strict=True)], axis=0)
    clear = within & (first - second > CLEAR)
    assert clear.mean() > 0.4
    for number, state in enumerate(decoded(placed).values(), 1):
        assert np.array_equal(state[clear], (np.argmax(each, axis=0) == number)[clear])
    assert not placed.rows[beyond].any()
    assert len(placed.states) <= 1 + 6


@pytest.mark.parametrize(("affine", "shape"), GRIDS + OBLIQUE)
def test_structures_that_overlap_need_more_than_half(affine, shape):
    inside = overlapping("abcd")
    drawing = drawing_of(inside)
    placed = place(drawing, affine, shape)
    where = places(drawing, affine, shape)
    within = np.all([(x > -0.499) & (x < size - 0.501) for x, size in zip(where, SHAPE, strict=True)], axis=0)
    for name, state in decoded(placed).items():
        share = shares(inside[name], where)
        clear = within & (np.abs(share - 0.5) > CLEAR)
        assert np.array_equal(state[clear], share[clear] > 0.5)


def test_a_new_combination_gets_a_row():
    """Structures that overlap by pairs meet; between the corners each of the three has more than half."""
    corners = {(0, 0): "ac", (0, 1): "ab", (1, 0): "ab", (1, 1): "bc"}
    inside = {name: np.zeros((2, 2, 2), bool) for name in "abc"}
    for (i, j), names in corners.items():
        for name in names:
            inside[name][i, j] = True
    between = np.eye(4)
    between[:2, 3] = 0.4
    drawing = drawing_of(inside, affine=np.eye(4))
    placed = place(drawing, between, (1, 1, 2))
    assert not (drawing.states == 1).all(axis=1).any()
    assert [state.ravel().tolist() for state in decoded(placed).values()] == [[1, 1]] * 3
    assert placed.drawn[placed.rows].all()


@pytest.mark.parametrize(("affine", "shape"), GRIDS + OBLIQUE)
def test_a_voxel_is_unknown_where_more_than_half_of_it_is(affine, shape):
    inside, known = disjoint("abc"), smooth("x", seed=3)["x"] > -0.05
    drawing = drawing_of(inside, dict.fromkeys("abc", known), layers=(0, 0, 0))
    placed = place(drawing, affine, shape)
    where = places(drawing, affine, shape)
    within = np.all([(x > -0.499) & (x < size - 0.501) for x, size in zip(where, SHAPE, strict=True)], axis=0)
    share = shares(known, where)
    clear = within & (np.abs(share - 0.5) > CLEAR)
    assert np.array_equal((placed.rows != 0)[clear], share[clear] > 0.5)
    each = np.stack([shares(known & one, where) for one in (~np.any(list(inside.values()), axis=0), *inside.values())])
    clear &= np.diff(np.sort(each, axis=0)[-2:], axis=0)[0] > CLEAR
    for number, state in enumerate(decoded(placed).values(), 1):
        assert np.array_equal(state[clear & (share > 0.5)], (each.argmax(axis=0) == number)[clear & (share > 0.5)])


def planes_by_loops(line, annotated):
    """The rule in words: for each target plane its source plane, or None."""
    valid = set()
    for plane in annotated:
        gaps = [round(abs(x - plane), 3) for x in line]
        if min(gaps) <= 1:  # farther away there is nothing of the plane's image
            valid.add(gaps.index(min(gaps)))
    for number, x in enumerate(line):
        if {int(np.floor(x + 1e-6)), int(np.ceil(x - 1e-6))} <= set(annotated):
            valid.add(number)
    nearest = [min(sorted(annotated, reverse=True), key=lambda plane, x=x: round(abs(x - plane), 3)) for x in line]
    return [plane if number in valid else None for number, plane in enumerate(nearest)]


ALONG, ACROSS = [(1, 1, zoom) for zoom in (0.5, 0.75, 1.5, 3.7)], [(zoom, zoom, 1) for zoom in (0.5, 0.75, 1.5)]
ZOOMS = [*ALONG, *ACROSS, (0.5, 0.5, 0.5), (0.8, 1.2, 1.5)]


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize("zooms", ZOOMS)
@pytest.mark.parametrize("annotated", [(4,), (0, 12), (2, 5, 9), (3, 4, 5, 10), (1, 3, 6, 7)])
@pytest.mark.parametrize("codes", ["RAS", "ILP"])
def test_annotated_planes_follow_the_rule_by_loops(annotated, zooms, edges, codes):
    inside = disjoint("abc")
    known = np.broadcast_to(np.isin(np.arange(SHAPE[2]), annotated), SHAPE)
    drawing = drawing_of(inside, dict.fromkeys("abc", known), layers=(0, 0, 0))
    affine, shape = zoomed(SPACING, SHAPE, zooms, edges)
    placed = place(turned(drawing, codes), affine, shape)
    where = places(drawing, affine, shape)
    within = np.all([(x > -0.501) & (x < size - 0.499) for x, size in zip(where, SHAPE, strict=True)], axis=0)
    kept = set()
    for number, plane in enumerate(planes_by_loops(where[2, 0, 0], annotated)):
        if plane is None:
            assert not placed.rows[:, :, number].any()
            continue
        kept.add(plane)
        assert np.array_equal(placed.rows[:, :, number] != 0, within[:, :, number])
        flat = [where[0, :, :, number], where[1, :, :, number]]
        each = [shares(~np.any(list(inside.values()), axis=0)[:, :, plane], flat)]
        each += [shares(one[:, :, plane], flat) for one in inside.values()]
        clear = within[:, :, number] & (np.diff(np.sort(each, axis=0)[-2:], axis=0)[0] > CLEAR)
        for label, state in enumerate(decoded(placed).values(), 1):
            assert np.array_equal(state[:, :, number][clear], (np.argmax(each, axis=0) == label)[clear])
    assert zooms[2] < 1 or kept == set(annotated)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("zoom", [0.5, 0.75, 1.5])
def test_one_structure_everywhere_and_another_on_planes(axis, zoom):
    """Each is placed as if it were alone; masks of separate files say nothing of each other."""
    inside = overlapping("ab")
    where = np.isin(np.indices(SHAPE)[axis], (2, 6, 7))
    affine, shape = zoomed(SPACING, SHAPE, [zoom] * 3)
    both = decoded(place(drawing_of(inside, {"b": where}), affine, shape))
    alone = {name: {name: each} for name, each in inside.items()}
    assert np.array_equal(both["a"], decoded(place(drawing_of(alone["a"]), affine, shape))["a"])
    assert np.array_equal(both["b"], decoded(place(drawing_of(alone["b"], {"b": where}), affine, shape))["b"])
    assert 0 < (both["b"] >= 0).mean() < 0.7


@pytest.mark.parametrize("zoom", [0.5, 0.75, 1.5])
def test_structures_that_nowhere_overlap_do_not_overlap_afterwards(zoom):
    inside = disjoint("ab", seed=4)
    where = np.isin(np.indices(SHAPE)[2], (1, 4, 8))
    drawing = drawing_of(inside, {"b": where})
    placed = decoded(place(drawing, *zoomed(SPACING, SHAPE, [zoom] * 3)))
    assert (placed["b"] == 1).any()
    assert (placed["a"] == 1).any()
    assert not ((placed["a"] == 1) & (placed["b"] == 1)).any()


@pytest.mark.parametrize(("start", "winner"), [(1.0, "b"), (1.45, "a")])
def test_of_two_that_nowhere_overlap_the_larger_share_wins_also_if_they_were_drawn_at_different_places(start, winner):
    """At k = 3.6 plane 4, all of it a, has 0.6; the annotated plane 3 is b up to i = 1, so b has 1 or 0.55 there."""
    inside = {name: np.zeros((4, 4, 8), bool) for name in "ab"}
    inside["a"][:, :, 4:] = inside["b"][:2, :, 3] = True
    drawing = drawing_of(inside, {"b": np.isin(np.indices((4, 4, 8))[2], (3,))}, affine=np.eye(4))
    affine = np.diag([1, 1, 2, 1.0])
    affine[:3, 3] = (start, 0, 1.6)
    placed = decoded(place(drawing, affine, (1, 4, 3)))
    assert placed["a"][0, 0].tolist() == [0, winner == "a", 1]
    assert placed["b"][0, 0].tolist() == [-1, winner == "b", -1]


def test_what_follows_from_another_structure_of_its_layer_follows_in_the_new_grid_too():
    inside = disjoint("ab")
    drawing = drawing_of(inside, {"b": inside["a"]}, layers=(0, 0))
    drawn = drawing.drawn.copy()
    drawn[:, 1] = False
    drawing = Drawing(drawing.rows, SPACING, drawing.names, drawing.states, drawn, drawing.layers)
    placed = place(drawing, *zoomed(SPACING, SHAPE, [1.4, 0.8, 1.5]))
    states = decoded(placed)
    assert set(np.unique(states["a"])) == {0, 1}
    assert np.array_equal(states["b"], np.where(states["a"] == 1, 0, -1))
    assert placed.drawn[1:].tolist() == [[True, False]] * 2


def test_within_an_annotated_plane_an_ignored_region_stays_ignored():
    inside, ignored = disjoint("a"), smooth("x", seed=2)["x"] > 0
    known = np.isin(np.indices(SHAPE)[2], (3, 9)) & ~ignored
    affine, shape = zoomed(SPACING, SHAPE, (1, 1, 1.5))
    placed = place(drawing_of(inside, {"a": known}), affine, shape)
    line = np.linalg.inv(SPACING) @ affine
    for number, plane in enumerate(planes_by_loops(line[2, 2] * np.arange(shape[2]) + line[2, 3], (3, 9))):
        expected = np.zeros(SHAPE[:2], bool) if plane is None else known[:, :, plane]
        assert np.array_equal(placed.rows[:, :, number] != 0, expected)


@pytest.mark.parametrize("zoom", [1.5, 2.0, 3.0])
def test_scribbles_survive_a_finer_grid(zoom):
    inside, known = disjoint("a"), np.random.default_rng(0).random(SHAPE) < 0.02
    affine, shape = zoomed(SPACING, SHAPE, [zoom] * 3)
    drawing = drawing_of(inside, {"a": known})
    placed = place(drawing, affine, shape)
    where = places(drawing, affine, shape)
    nearest = tuple(np.clip(np.rint(each), 0, size - 1).astype(int) for each, size in zip(where, SHAPE, strict=True))
    tie = np.any([np.abs(np.abs(each - np.rint(each)) - 0.5) < CLEAR for each in where], axis=0)
    assert np.array_equal((placed.rows != 0)[~tie], known[nearest][~tie])
    assert not (placed.rows != 0)[tie].any() or zoom == 1.5
    assert set(zip(*(each[placed.rows != 0] for each in nearest), strict=True)) >= set(
        zip(*np.nonzero(known), strict=True)
    )


def test_no_scribble_is_lost_at_half_the_resolution():
    known = np.random.default_rng(0).random((8, 10, 12)) < 0.02
    drawing = drawing_of({"a": np.ones(known.shape, bool)}, {"a": known})
    placed = place(drawing, *zoomed(SPACING, known.shape, (0.5, 0.5, 0.5)))
    assert np.array_equal(placed.rows != 0, known.reshape(4, 2, 5, 2, 6, 2).any(axis=(1, 3, 5)))


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("zoom", [0.5, 0.75, 1.5, 2])
def test_how_the_file_is_stored_does_not_matter(codes, zoom):
    """Ties included: at half and twice the spacing half of the voxels are ties."""
    drawings = [
        drawing_of(disjoint("abc"), layers=(0, 0, 0)),
        drawing_of(overlapping("abc"), {"a": np.isin(np.indices(SHAPE)[1], (2, 5, 7))}),
        drawing_of(disjoint("abc"), dict.fromkeys("abc", np.isin(np.indices(SHAPE)[2], (1, 3, 4, 8)))),
    ]
    for drawing in drawings:
        for edges in (True, False):
            affine, shape = zoomed(SPACING, SHAPE, [zoom] * 3, edges)
            expected, found = place(drawing, affine, shape), place(turned(drawing, codes), affine, shape)
            assert np.array_equal(expected.rows, found.rows)
            assert np.array_equal(expected.states, found.states)


def test_the_target_may_be_stored_in_any_orientation():
    drawing = drawing_of(disjoint("abc"), dict.fromkeys("abc", np.isin(np.indices(SHAPE)[2], (1, 3, 4, 8))))
    affine, shape = zoomed(SPACING, SHAPE, (0.7, 0.7, 0.5), edges=False)
    expected = place(drawing, affine, shape).rows
    for codes in CODES:
        rows, target = stored(expected, affine, codes)
        assert np.array_equal(place(drawing, target, rows.shape).rows, rows)


@pytest.mark.parametrize(("affine", "shape"), OBLIQUE)
def test_on_an_oblique_grid_planes_stay_planes(affine, shape):
    annotated = (3, 8)
    inside = disjoint("ab")
    known = np.isin(np.indices(SHAPE)[2], annotated)
    drawing = drawing_of(inside, dict.fromkeys("ab", known), layers=(0, 0))
    placed = place(drawing, affine, shape)
    where = places(drawing, affine, shape)
    pitch = abs((np.linalg.inv(SPACING) @ affine)[2, 2])
    gap = np.min([np.abs(where[2] - plane) for plane in annotated], axis=0)
    within = np.all([(x > -0.5) & (x < size - 0.5) for x, size in zip(where, SHAPE, strict=True)], axis=0)
    assert not placed.rows[gap > pitch / 2 + 2e-3].any()
    assert (placed.rows != 0)[within & (gap < pitch / 2 - 2e-3)].all()


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRA"])
@pytest.mark.parametrize(
    ("annotated", "lost"),
    [((20, 22), [20]), ((5, 7, 13, 35), [7, 35]), ((21, 29), []), (range(10, 30), []), ((3, 20), [3, 20])],
)
def test_planes_that_would_be_lost_are_told(annotated, lost, codes):
    """Every fourth plane of the file is halfway near one of the grid; a run of planes is kept by any of them."""
    shape = (6, 5, 40)
    known = np.isin(np.indices(shape)[2], annotated)
    drawing = drawing_of(disjoint("ab", shape), dict.fromkeys("ab", known), layers=(0, 0))
    grid = zoomed(SPACING, shape, (1, 1, 0.25))
    if lost:
        with pytest.raises(ValueError, match=rf"planes \[{', '.join(map(str, lost))}\] of a, b fall between .* \(3 mm"):
            place(turned(drawing, codes), *grid)
    else:
        planes = np.flatnonzero((place(turned(drawing, codes), *grid).rows != 0).any(axis=(0, 1)))
        assert planes.tolist() == [number for number in range(10) if {4 * number + 1, 4 * number + 2} & set(annotated)]


def test_planes_beside_the_grid_are_cropped_not_lost():
    known = np.isin(np.indices(SHAPE)[2], (2, 11))
    drawing = drawing_of(disjoint("a"), {"a": known})
    affine, (i, j, k) = zoomed(SPACING, SHAPE, (1, 1, 1.5))
    placed = place(drawing, affine, (i, j, k // 2))
    assert np.flatnonzero((placed.rows != 0).any(axis=(0, 1))).tolist() == [3]


@pytest.mark.parametrize("scan", ["abdomen_ct", "chest_ct", "spine_mr"])
def test_a_real_scan_there_and_back_is_the_same_scan(scan):
    case = EmbeddedScan(scan).case
    drawing = read_drawing(case, read_image(case.channels["image"]))
    there = place(drawing, *zoomed(drawing.affine, drawing.rows.shape, [1.7, 1.6, 1.5]))
    back = place(there, drawing.affine, drawing.rows.shape)
    returned = decoded(back)
    for name, before in decoded(drawing).items():
        after = returned[name]
        dice = 2 * ((before == 1) & (after == 1)).sum() / ((before == 1).sum() + (after == 1).sum())
        assert dice > 0.9, name
