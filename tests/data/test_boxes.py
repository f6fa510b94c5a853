from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms import (
    Affine,
    Compose,
    Crop,
    CropOrPad,
    Flip,
    OneOf,
    Pad,
    RandomAffine,
    RandomAnisotropy,
    RandomElasticDeformation,
    RandomFlip,
    RandomNoise,
)

from lightning_atlas.data import CentreCrop, RandomQuarterTurns, RandomResizePicture, ResizePicture
from lightning_atlas.data.boxes import (
    carried,
    check_carrying,
    clipped,
    flipped,
    follow,
    make_boxes,
    middle_of_some,
    shifted,
    volumes,
)
from lightning_atlas.data.pipeline import flat
from lightning_atlas.types import Boxes

LEFT_UP: Any = ("Left", "Superior")  # TorchIO says numbers, and takes names
SHAPE = (20, 20, 12)
AFFINE = np.array([[0, -1.5, 0, 7], [2.0, 0, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])
BOX = [3.0, 5, 2, 11, 9, 7]


def drawn(box=BOX, shape=SHAPE):
    """Return a label that is 1 in the box."""
    label = torch.zeros((1, *shape))
    i0, j0, k0, i1, j1, k1 = map(int, box)
    label[:, i0:i1, j0:j1, k0:k1] = 1
    return label


def about(label):
    """Return the corners of what is drawn."""
    places = torch.nonzero(label[0] > 0)
    return torch.cat([places.amin(0), places.amax(0) + 1]).tolist()


def subject(box=BOX):
    label = drawn(box)
    return tio.Subject(
        image=tio.ScalarImage(tensor=label, affine=AFFINE), label=tio.LabelMap(tensor=label, affine=AFFINE)
    )


EXACT = [
    RandomFlip((0, 1, 2)),
    RandomFlip(LEFT_UP),
    Flip((0, 2)),
    RandomQuarterTurns(("i", "j"), p=1.0),
    RandomQuarterTurns(("k", "i"), p=1.0),
    Crop((1, 2, 0, 3, 1, 0)),
    Pad((1, 2, 0, 3, 1, 0)),
    CropOrPad((24, 12, 14)),
    Compose([RandomFlip(0), Crop((2, 0, 1, 0, 0, 1)), RandomFlip(0), RandomQuarterTurns(("j", "i"), p=1.0), Pad(2)]),
    OneOf({RandomFlip(2): 1, RandomQuarterTurns(p=1.0): 1}),
    RandomNoise(),
]


@pytest.mark.parametrize("transform", EXACT, ids=range(len(EXACT)))
def test_a_box_goes_where_its_voxels_go(transform):
    check_carrying(list(flat([transform])))
    for seed in range(8):
        torch.manual_seed(seed)
        moved = transform(subject())
        boxes, shape = follow(make_boxes([BOX]), moved, SHAPE, AFFINE)
        assert boxes.corners[0].tolist() == about(moved["label"].data)
        assert shape == moved.spatial_shape


SHIFT = Affine(scales=(1, 1, 1), degrees=(0, 0, 0), translation=(3, 4, 0))  # two voxels of `AFFINE` along i and j
MOVES = (RandomResizePicture([60]), SHIFT, Flip(0), Crop((1, 2, 0, 3, 0, 0)))


@pytest.mark.parametrize(
    "moves",
    [*permutations(MOVES), (CentreCrop((16, 18)), ResizePicture(48), SHIFT), (RandomQuarterTurns(p=1.0), *MOVES[:2])],
    ids=range(26),
)
def test_a_box_goes_where_its_voxels_go_when_their_size_changes_on_the_way(moves):
    check_carrying(moves)
    moved: Any = Compose(moves)(subject())
    boxes, shape = follow(make_boxes([BOX]), moved, SHAPE, AFFINE)
    assert shape == moved.spatial_shape
    # a mask that is made larger takes the nearest voxel
    assert np.abs(clipped(boxes, shape).corners[0].numpy() - about(moved["label"].data)).max() <= 1


@pytest.mark.parametrize(
    "transform",
    [
        RandomAffine(scales=(0.8, 1.3), degrees=0, translation=0),
        RandomAffine(scales=0, degrees=0, translation=6),
        RandomAffine(scales=0.2, degrees=(15, 15, 25), translation=4),
        RandomAffine(scales=0.1, degrees=20, center="origin"),
        Compose([RandomFlip(0, flip_probability=1), RandomAffine(degrees=30), Crop(1)]),
    ],
)
def test_a_turned_box_is_the_least_that_holds_the_turned_one(transform):
    box = [7.0, 7, 4, 13, 12, 8]
    fine = 8
    for seed in range(2):
        torch.manual_seed(seed)
        moved = Compose(list(flat([transform])))(subject(box))
        boxes, _ = follow(make_boxes([box]), moved, SHAPE, AFFINE)
        # the referee: the same draw on a grid of voxels eight times finer, nearest voxel
        small = AFFINE @ np.diag([1 / fine, 1 / fine, 1 / fine, 1.0])
        small[:3, 3] = AFFINE[:3, 3] - AFFINE[:3, :3] @ np.full(3, 0.5 - 0.5 / fine)
        size = tuple(side * fine for side in SHAPE)
        label = drawn([side * fine for side in box], size).to(torch.uint8)
        torch.manual_seed(seed)
        as_fine = Compose([each if not isinstance(each, Crop) else Crop(fine) for each in flat([transform])])
        seen = as_fine(tio.Subject(label=tio.LabelMap(tensor=label, affine=small))).get_image("label").data
        if not seen.any():
            continue
        truth = torch.tensor(about(seen)) / fine
        limits = torch.tensor(seen.shape[1:]).repeat(2) / fine
        assert torch.allclose(boxes.corners[0].clamp(min=0).minimum(limits), truth, atol=2.5 / fine)


def test_a_change_of_resolution_on_the_way_moves_nothing():
    torch.manual_seed(0)
    moved = RandomAnisotropy(downsampling=3)(subject())
    boxes, shape = follow(make_boxes([BOX]), moved, SHAPE, AFFINE)
    assert boxes.corners[0].tolist() == BOX
    assert shape == SHAPE


@pytest.mark.parametrize("transform", [RandomElasticDeformation(), Compose([OneOf([RandomElasticDeformation()])])])
def test_what_bends_is_refused(transform):
    with pytest.raises(ValueError, match=r"RandomElasticDeformation moves voxels .*; take it out"):
        check_carrying(list(flat([transform])))


def test_carrying_there_and_back_gives_the_same_box():
    boxes = make_boxes([[*BOX, 2], [0.5, 0, 0, 1.5, 20, 12, 1]])
    matrix = np.array([[0, 0.5, 0, 3.25], [-2, 0, 0, 9], [0, 0, 1.5, -1], [0, 0, 0, 1]])
    back = carried(carried(boxes, matrix), np.linalg.inv(matrix))
    assert torch.allclose(back.corners, boxes.corners, atol=1e-5)
    assert back.classes.tolist() == [2, 1]
    # a voxel that becomes two by two: the box grows, and starts at the same face
    assert carried(make_boxes([BOX]), np.diag([2.0, 2, 1, 1]) + np.eye(4)[:, 3] * [[0.5], [0.5], [0], [0]]).corners[
        0
    ].tolist() == [6, 10, 2, 22, 18, 7]


def test_flips_and_shifts_are_whole_numbers():
    boxes = make_boxes([BOX])
    assert flipped(boxes, (0, 2), SHAPE).corners[0].tolist() == [9, 5, 5, 17, 9, 10]
    assert shifted(boxes, (-3, 1, 0)).corners[0].tolist() == [0, 6, 2, 8, 10, 7]


def test_less_than_the_visible_share_is_nothing():
    boxes = Boxes(torch.tensor([[-3.0, 0, 0, 1, 4, 4], [-2, 0, 0, 2, 4, 4], [20, 0, 0, 21, 4, 4]]), torch.arange(3))
    boxes = boxes._replace(scores=torch.tensor([0.1, 0.2, 0.3]))
    assert clipped(boxes, (20, 20, 12), 0.25).classes.tolist() == [0, 1]
    some = clipped(boxes, (20, 20, 12), 0.26)
    assert some.scores is not None
    assert some.corners.tolist() == [[0, 0, 0, 2, 4, 4]]
    assert (some.classes.tolist(), some.scores.tolist()) == ([1], [pytest.approx(0.2)])
    assert volumes(clipped(make_boxes([]), SHAPE, 0.5).corners).tolist() == []


def test_patches_are_centred_on_boxes_of_each_class_equally_often():
    boxes = make_boxes([[0, 0, 0, 2, 2, 2, 0]] * 9 + [[10, 10, 10, 20, 20, 20, 3]])
    random = np.random.default_rng(0)
    by_class = [middle_of_some(boxes, "class", None, random).tolist() for _ in range(200)]
    assert 70 < by_class.count([15, 15, 15]) < 130
    assert {tuple(place) for place in by_class} == {(1, 1, 1), (15, 15, 15)}
    by_voxel = [middle_of_some(boxes, "voxel", None, random).tolist() for _ in range(200)]
    assert by_voxel.count([15, 15, 15]) > 170
    assert middle_of_some(boxes, "rare", 0, random).tolist() == [1, 1, 1]
