from itertools import permutations
from typing import cast

import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms import Compose, RandomFlip

from lightning_atlas.data import ColoursToSlices, RandomColoursToSlices
from lightning_atlas.data.augmentation.slices import colours_are_slices
from lightning_atlas.data.boxes import follow
from lightning_atlas.types import Boxes


def picture():
    image = torch.arange(3 * 4 * 5).view(3, 4, 5, 1).float()
    label = torch.arange(4 * 5).view(1, 4, 5, 1).short()
    return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_each_colour_becomes_a_slice(order):
    before, after = picture(), ColoursToSlices(order=order)(picture())
    assert after.get_image("image").shape == (1, 4, 5, 3)
    for slice_, colour in enumerate(order):
        assert torch.equal(
            after.get_image("image").data[0, :, :, slice_], before.get_image("image").data[colour, :, :, 0]
        )
        assert torch.equal(after.get_image("label").data[0, :, :, slice_], before.get_image("label").data[0, :, :, 0])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_it_goes_back_exactly(order):
    transform, before = ColoursToSlices(order=order), picture()
    back = transform.inverse()(transform(picture()))
    for name in ("image", "label"):
        assert torch.equal(back.get_image(name).data, before.get_image(name).data)


def test_it_is_a_view():
    subject = picture()
    image = subject.get_image("image")
    ColoursToSlices().apply_transform(subject)
    memory = image.data.data_ptr()
    ColoursToSlices(back=True).apply_transform(subject)
    assert image.data.data_ptr() == memory


def test_random_orders_come_equally_often_and_again_from_the_same_seed():
    drawn = [tuple(RandomColoursToSlices().move((3, 4, 5, 1)).order) for _ in range(1200)]
    counts = [sum(order == each for order in drawn) for each in permutations(range(3))]
    assert sum(counts) == 1200
    assert min(counts) > 140  # 200 expected, four standard deviations below
    torch.manual_seed(7)
    first = RandomColoursToSlices()(picture())
    torch.manual_seed(7)
    assert torch.equal(first.image.data, RandomColoursToSlices()(picture()).image.data)


def test_the_history_takes_random_orders_back():
    for _ in range(6):
        after = RandomColoursToSlices()(picture())
        assert torch.equal(after.apply_inverse_transform().image.data, picture().image.data)


def test_slices_come_in_a_random_order_too_and_go_back():
    before, boxes = ColoursToSlices()(picture()), Boxes(torch.tensor([[1.0, 2, 0, 3, 4, 3]]), torch.zeros(1).long())
    before["boxes"] = boxes
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        after = RandomColoursToSlices()(before)
        planes = after.get_image("image").data[0].unbind(2)
        order = [next(n for n in range(3) if torch.equal(plane, picture().image.data[n, ..., 0])) for plane in planes]
        seen.add(tuple(order))
        assert torch.equal(after.get_image("label").data, before.get_image("label").data)
        assert torch.equal(cast(Boxes, after["boxes"]).corners, boxes.corners)
        assert follow(boxes, after, (4, 5, 3), np.eye(4))[0].corners.tolist() == boxes.corners.tolist()
        assert torch.equal(after.apply_inverse_transform().image.data, picture().image.data)
        torch.manual_seed(seed)
        torch.rand(1)  # TorchIO asks first whether to apply it
        move = RandomColoursToSlices().move((1, 4, 5, 3))
        assert torch.equal(move.pixels(before.get_image("image").data), after.get_image("image").data)
        assert torch.equal(move.masks(before.get_image("label").data), after.get_image("label").data)
    assert seen == set(permutations(range(3)))


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ({"augment": [RandomColoursToSlices()], "evaluate": []}, r"ColoursToSlices} at the end of .*evaluate"),
        (
            {"augment": [], "evaluate": [Compose([ColoursToSlices()])]},
            r"RandomColoursToSlices} at .*augment",
        ),
        (
            {"preprocess": [ColoursToSlices(), ColoursToSlices(back=True)], "augment": [RandomColoursToSlices()]},
            r" ColoursToSlices} at the end of .*preprocess",
        ),
    ],
)
def test_slices_in_training_or_in_scoring_alone_are_refused(seen, found):
    with pytest.raises(ValueError, match=found):
        colours_are_slices(seen)


def test_whether_colours_are_slices_is_told():
    both = [ColoursToSlices(), RandomColoursToSlices()]
    assert colours_are_slices({"preprocess": both[:1], "augment": both})
    assert not colours_are_slices({"preprocess": [], "augment": [RandomFlip()]})


@pytest.mark.parametrize("shape", [(1, 4, 5, 1), (3, 4, 5, 2), (4, 4, 5, 1)])
def test_another_image_is_refused(shape):
    with pytest.raises(ValueError, match="it is for colour pictures"):
        ColoursToSlices()(tio.ScalarImage(tensor=torch.zeros(shape)))
