import itertools
import json

import numpy as np
import pytest
import torchio as tio

from lightning_atlas.data.embedded import FILES, HERE
from lightning_atlas.data.labels.sides import check_sides, side_pairs, split_by_side

GROWN_TOGETHER = {  # at 3 mm the hips meet in front, the vessels in the middle; at 10 mm the lungs meet
    "abdomen_ct": {"hip_left", "iliac_artery_left", "iliac_vena_left"},
    "chest_ct": {"left_lung"},
}
PAIRS = {"abdomen_ct": 18, "abdomen_mr": 4, "chest_ct": 1, "spine_ct": 3, "spine_mr": 3}
SPACING_MM = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture(scope="module", params=FILES)
def scan(request):
    values = json.loads((HERE / f"{request.param}.json").read_text(encoding="utf-8"))
    drawing = tio.LabelMap(HERE / FILES[request.param][1])
    return request.param, drawing.data.numpy()[0].astype(np.int32), drawing.affine, values


def stored(volume, affine, order, flips):
    """Return the same anatomy on a grid whose axes are permuted and reversed."""
    to_old = np.eye(4)[:, [*order, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            to_old[:, 3] += (volume.shape[order[axis]] - 1) * to_old[:, axis]
            to_old[:, axis] *= -1
    volume = np.flip(volume.transpose(order), tuple(axis for axis, flip in enumerate(flips) if flip))
    return np.ascontiguousarray(volume), affine @ to_old


def boxes(*corners):
    mask = np.zeros((40, 20, 60), dtype=bool)
    for (i, j, k), size in corners:
        mask[i : i + size, j : j + size, k : k + size] = True
    return mask


def test_left_is_left_on_real_images(scan):
    name, label, affine, values = scan
    pairs = side_pairs(values)
    assert len(pairs) == PAIRS[name]
    assert check_sides(label, affine, pairs) == []
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine
    assert check_sides(label, mirrored, pairs) == list(pairs)


def test_a_real_pair_is_parted_into_what_was_drawn(scan):
    name, label, affine, values = scan
    for pair, (left, right) in side_pairs(values).items():
        parted = split_by_side((label == left) | (label == right), affine)
        if pair in GROWN_TOGETHER.get(name, ()):
            assert parted is None
        else:
            assert parted is not None, pair
            assert np.array_equal(parted[0], label == left)
            assert np.array_equal(parted[1], label == right)


def test_ribs_of_both_sides_are_parted_at_once():
    values = json.loads((HERE / "abdomen_ct.json").read_text(encoding="utf-8"))
    drawing = tio.LabelMap(HERE / FILES["abdomen_ct"][1])
    label = drawing.data.numpy()[0]
    sides = [np.isin(label, [value for name, value in values.items() if name.startswith(f"rib_{side}")])
             for side in ("left", "right")]  # fmt: skip
    parted = split_by_side(sides[0] | sides[1], drawing.affine)
    assert parted is not None
    assert all(np.array_equal(one, other) for one, other in zip(parted, sides, strict=True))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_the_way_a_file_is_stored_does_not_matter(order, flips):
    left, right = boxes(((4, 5, 9), 8)), boxes(((25, 3, 20), 7))
    mask, affine = stored(left | right, SPACING_MM, order, flips)
    parted = split_by_side(mask, affine)
    assert parted is not None
    assert np.array_equal(parted[0], stored(left, SPACING_MM, order, flips)[0])
    label = np.where(left, 1, np.where(right, 2, 0))
    assert check_sides(*stored(label, SPACING_MM, order, flips), {"kidney": (1, 2)}) == []
    assert check_sides(*stored(label, SPACING_MM, order, flips), {"kidney": (2, 1)}) == ["kidney"]


def test_the_two_largest_components_may_be_of_one_side():
    left = boxes(((2, 4, 2), 8), ((3, 4, 20), 8))
    right = boxes(((28, 4, 2), 6), ((27, 4, 20), 6), ((30, 4, 40), 5))
    parted = split_by_side(left | right, SPACING_MM)
    assert parted is not None
    assert np.array_equal(parted[0], left)
    assert np.array_equal(parted[1], right)


def test_a_pair_far_from_the_middle_of_the_scan_is_parted():
    parted = split_by_side(boxes(((1, 4, 2), 6), ((10, 4, 2), 6)), SPACING_MM)
    assert parted is not None
    assert parted[0].sum() == parted[1].sum() == 6**3


def test_a_splinter_far_away_does_not_decide():
    left, right = boxes(((6, 4, 4), 7)), boxes(((22, 4, 4), 7), ((39, 4, 4), 1))
    parted = split_by_side(left | right, SPACING_MM)
    assert parted is not None
    assert np.array_equal(parted[0], left)
    assert np.array_equal(parted[1], right)


def test_voxels_that_touch_by_a_corner_are_one_component():
    assert split_by_side(boxes(((4, 4, 4), 5), ((9, 9, 9), 5)), SPACING_MM) is None


@pytest.mark.parametrize("small", [4, 5])
def test_a_component_with_more_than_its_share_leaves_the_pair_undivided(small):
    """7^3 and 4^3 are 84 and 16 %, 7^3 and 5^3 are 73 and 27 %."""
    parted = split_by_side(boxes(((2, 4, 4), 7), ((28, 4, 4), small)), SPACING_MM)
    assert (parted is None) == (small == 4)


def test_pieces_one_above_the_other_are_no_pair():
    assert split_by_side(boxes(((10, 4, 2), 8), ((11, 4, 20), 8)), SPACING_MM) is None


def test_nothing_drawn_is_nothing_on_either_side():
    parted = split_by_side(boxes(), SPACING_MM)
    assert parted is not None
    assert not parted[0].any()
    assert not parted[1].any()


def test_a_pair_of_which_one_is_absent_tells_nothing():
    label = np.where(boxes(((30, 4, 2), 6)), 1, 0)
    assert check_sides(label, SPACING_MM, {"kidney": (1, 2)}) == []


def test_pairs_are_found_by_name():
    values = {"kidney_right": 2, "kidney_left": 3, "liver": 5, "heart_atrium_left": 6, "heart_atrium_right": 7}
    assert side_pairs(values) == {"kidney_left": (3, 2)}
