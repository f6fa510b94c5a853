from itertools import permutations

import pytest
import torch
import torchio as tio

from lightning_atlas.data import ColoursToSlices, RandomColoursToSlices


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


@pytest.mark.parametrize("shape", [(1, 4, 5, 1), (3, 4, 5, 2), (4, 4, 5, 1)])
def test_another_image_is_refused(shape):
    with pytest.raises(ValueError, match="it is for colour pictures"):
        ColoursToSlices()(tio.ScalarImage(tensor=torch.zeros(shape)))
