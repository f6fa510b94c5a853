import pytest
import torch
import torchio as tio

from lightning_atlas.data import ColoursToSlices


def picture():
    image = torch.arange(3 * 4 * 5).view(3, 4, 5, 1).float()
    label = torch.arange(4 * 5).view(1, 4, 5, 1).short()
    return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))


def test_each_colour_becomes_a_slice():
    before, after = picture(), ColoursToSlices()(picture())
    assert after.get_image("image").shape == (1, 4, 5, 3)
    for colour in range(3):
        assert torch.equal(
            after.get_image("image").data[0, :, :, colour], before.get_image("image").data[colour, :, :, 0]
        )
        assert torch.equal(after.get_image("label").data[0, :, :, colour], before.get_image("label").data[0, :, :, 0])


def test_it_goes_back_exactly():
    transform, before = ColoursToSlices(), picture()
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


@pytest.mark.parametrize("shape", [(1, 4, 5, 1), (3, 4, 5, 2), (4, 4, 5, 1)])
def test_another_image_is_refused(shape):
    with pytest.raises(ValueError, match="it is for colour pictures"):
        ColoursToSlices()(tio.ScalarImage(tensor=torch.zeros(shape)))
