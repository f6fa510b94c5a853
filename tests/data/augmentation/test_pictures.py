import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torchio as tio
from PIL import Image
from torchio.transforms import Compose, OneOf, RandomAffine, RandomFlip, RandomGamma, ToCanonical

from lightning_atlas.data import (
    CentreCrop,
    ColoursToSlices,
    RandomColoursToSlices,
    RandomCrop,
    RandomResizedCrop,
    RandomResizePicture,
    ResizePicture,
)
from lightning_atlas.data.augmentation.pictures import Picture, check_picture_transforms, transformed
from lightning_atlas.data.formats.pictures import LPS
from lightning_atlas.types import Boxes

WIDE, HIGH = 40, 24
LEFT_RIGHT: Any = ("LR",)  # TorchIO says numbers, and takes names


def photograph():
    return np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)


def tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 1, 0)[..., None]


def box(i0, j0, i1, j1, number=0):
    return Boxes(torch.tensor([[i0, j0, 0.0, i1, j1, 1.0]]), torch.tensor([number]))


def with_box(i0, j0, i1, j1):
    """A black picture with a white box, and the box as numbers."""
    pixels = np.zeros((HIGH, WIDE, 3), np.uint8)
    pixels[j0:j1, i0:i1] = 255
    return Picture(tensor(pixels), LPS, box(float(i0), float(j0), float(i1), float(j1)))


def seen(image):
    """The corners of what is white."""
    places = np.argwhere(image[0, :, :, 0].numpy() > 127)
    return np.concatenate([places.min(0), places.max(0) + 1])


@pytest.mark.parametrize("short", [12, 48])
def test_a_resized_picture_equals_pillows(short):
    pixels = photograph()
    resized = ResizePicture(short)(tio.ScalarImage(tensor=tensor(pixels))).data
    wide = round(short * WIDE / HIGH)
    expected = np.asarray(Image.fromarray(pixels).resize((wide, short), Image.Resampling.BILINEAR))
    assert resized.dtype == torch.uint8
    assert np.abs(resized[..., 0].permute(2, 1, 0).numpy().astype(int) - expected).max() <= 1


def test_the_long_side_has_a_bound_and_of_several_lengths_each_is_drawn():
    image = tio.ScalarImage(tensor=tensor(photograph()))
    assert ResizePicture(48, longest=60)(image).spatial_shape == (60, 36, 1)
    assert {RandomResizePicture([12, 24])(image).spatial_shape for _ in range(20)} == {(20, 12, 1), (40, 24, 1)}


@pytest.mark.parametrize(("size", "columns", "rows"), [((20, 10), (10, 30), (7, 17)), ((50, 24), (-5, 45), (0, 24))])
def test_the_middle_is_cut_out_and_what_lacks_is_black(size, columns, rows):
    pixels = photograph()
    cut = CentreCrop(size)(tio.ScalarImage(tensor=tensor(pixels))).data[..., 0].permute(2, 1, 0).numpy()
    padded = np.pad(pixels, ((5, 5), (5, 5), (0, 0)))
    assert np.array_equal(cut, padded[rows[0] + 5 : rows[1] + 5, columns[0] + 5 : columns[1] + 5])


def test_a_random_crop_reaches_every_place_of_the_padded_picture():
    image = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4, 1)
    crops = {tuple(RandomCrop((4, 4), 1).move((1, 4, 4, 1)).low) for _ in range(400)}
    assert crops == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    shifted = RandomCrop((4, 4), 1).move((1, 4, 4, 1))._replace(low=(-1, 1)).pixels(image)[0, :, :, 0]
    assert torch.equal(shifted[1:, :3], image[0, :3, 1:, 0])
    assert not shifted[0].any()
    assert not shifted[:, 3].any()


def test_a_random_resized_crop_has_the_area_and_the_ratio_that_it_may():
    crop = RandomResizedCrop((8, 8), scale=(0.25, 0.5), ratio=(0.5, 2.0))
    drawn = [crop.move((3, 200, 200, 1)) for _ in range(500)]
    areas = torch.tensor([math.prod(each.extent) / 200**2 for each in drawn])
    ratios = torch.tensor([each.extent[0] / each.extent[1] for each in drawn])
    assert 0.24 < areas.min() < 0.27
    assert 0.48 < areas.max() < 0.51
    assert abs(areas.mean() - 0.375) < 0.02
    assert 0.48 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.1
    assert abs(ratios.log().mean()) < 0.08
    assert all(0 <= low <= 200 - extent for each in drawn for low, extent in zip(each.low, each.extent, strict=True))


def test_a_picture_too_narrow_for_any_crop_gives_its_middle():
    frame = RandomResizedCrop((8, 8), scale=(0.9, 1.0)).move((3, 400, 10, 1))
    assert frame.extent == (13, 10)  # 10 rows at the widest ratio, 4 / 3
    assert frame.low == (193, 0)


@pytest.mark.parametrize(
    "transform",
    [
        ResizePicture(72),
        ResizePicture(12),
        CentreCrop((36, 20)),
        CentreCrop((60, 60)),
        RandomCrop((38, 22), 2),
        RandomResizedCrop((64, 64), (0.9, 1.0)),
        RandomFlip(axes=(0, 1), flip_probability=1),
        ColoursToSlices(),
        RandomColoursToSlices(),
    ],
    ids=repr,
)
def test_boxes_and_the_affine_follow_what_is_seen(transform):
    picture = with_box(12, 8, 28, 16)
    moved = transformed(picture, [transform])
    assert moved.boxes is not None
    corners = moved.boxes.corners[0].numpy()
    assert np.abs(corners[[0, 1, 3, 4]] - seen(moved.image)).max() <= 1
    assert corners[5] == moved.image.shape[3]
    middle = np.array([*(corners[:2] + corners[3:5]) / 2 - 0.5, 0, 1])
    assert np.abs(moved.affine @ middle - LPS @ [19.5, 11.5, 0, 1]).max() < 0.01


def test_boxes_of_which_little_is_left_are_dropped_and_others_clipped():
    boxes = Boxes(
        torch.tensor([[0.0, 0, 0, 12, 24, 1], [8, 0, 0, 16, 8, 1], [30, 0, 0, 40, 8, 1]]), torch.tensor([0, 1, 2])
    )
    cut = CentreCrop((20, 24)).move((3, WIDE, HIGH, 1))  # columns 10 to 30
    left = cut.boxes(boxes, (WIDE, HIGH, 1))
    assert left.classes.tolist() == [1]
    assert left.corners.tolist() == [[0, 0, 0, 6, 8, 1]]


@pytest.mark.parametrize(
    "transform", [RandomFlip(axes=(0,)), RandomResizedCrop((16, 16)), RandomColoursToSlices(), RandomCrop((8, 8), 2)]
)
def test_the_short_way_gives_what_torchio_gives(transform):
    picture = Picture(tensor(photograph()), LPS, None)
    for seed in range(4):
        torch.manual_seed(seed)
        torch.rand(1)  # TorchIO asks first whether to apply it
        ours = transformed(picture, [transform])
        torch.manual_seed(seed)
        theirs = transform(tio.Subject(image=tio.ScalarImage(tensor=picture.image, affine=LPS))).get_image("image")
        assert torch.equal(ours.image, theirs.data)
        if not isinstance(transform, RandomFlip):  # TorchIO's reversal leaves the affine
            assert np.allclose(ours.affine, theirs.affine)


def test_masks_and_boxes_of_a_subject_follow():
    picture = with_box(12, 8, 28, 16)
    label = tio.LabelMap(tensor=(picture.image[:1] > 0).to(torch.int16), affine=LPS)
    subject = tio.Subject(image=tio.ScalarImage(tensor=picture.image, affine=LPS), label=label, boxes=picture.boxes)
    after = Compose([ResizePicture(48), RandomResizedCrop((50, 50), (0.8, 1.0)), RandomColoursToSlices()])(subject)
    mask = after.get_image("label").data
    assert mask.shape == (1, 50, 50, 3)
    assert set(mask.unique().tolist()) == {0, 1}
    corners = cast(Boxes, after["boxes"]).corners[0].numpy()
    assert np.abs(corners[[0, 1, 3, 4]] - seen(mask * 255)).max() <= 1
    assert corners[[2, 5]].tolist() == [0, 3]


@pytest.mark.parametrize("transform", [ToCanonical(), Compose([ToCanonical()])])
def test_what_turns_photographs_is_refused(transform):
    with pytest.raises(ValueError, match="ToCanonical would stand photographs on their heads"):
        check_picture_transforms([transform], False, "augment")


@pytest.mark.parametrize(
    "transform", [RandomAffine(), OneOf([RandomAffine(), RandomGamma()]), RandomFlip(axes=LEFT_RIGHT)]
)
def test_what_boxes_cannot_follow_is_refused(transform):
    with pytest.raises(ValueError, match="augment: boxes cannot follow"):
        check_picture_transforms([transform], True, "augment")
    check_picture_transforms([transform], False, "augment")
    check_picture_transforms([RandomGamma(), Compose([RandomGamma()]), RandomFlip(axes=(0,))], True, "augment")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RandomResizedCrop, {"scale": (0.0, 1.0)}),
        (RandomCrop, {"size": (0, 4)}),
        (RandomResizePicture, {"short": []}),
        (ResizePicture, {"short": 20, "longest": 10}),
        (CentreCrop, {"size": (4, 0)}),
        (ColoursToSlices, {"order": (0, 0, 1)}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, settings):
    with pytest.raises(ValueError, match="found"):
        kind(**settings)
