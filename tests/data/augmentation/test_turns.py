import numpy as np
import pytest
import torch
import torchio as tio

from lightning_atlas.data.augmentation.turns import RandomQuarterTurns
from lightning_atlas.data.pipeline import mirrored_axes, mirroring


def subject(shape):
    image = torch.arange(np.prod(shape)).view(1, *shape).float()
    return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=image.short()))


def turned(times, **options):
    transform = RandomQuarterTurns(p=1.0, **options)
    return [transform(subject((4, 4, 3))) for _ in range(times)]


def test_every_turn_but_none_comes_equally_often():
    torch.manual_seed(0)
    before = subject((4, 4, 3)).get_image("image").numpy()[0]
    found = [each.get_image("image").numpy()[0] for each in turned(300)]
    counts = [sum(np.array_equal(each, np.rot90(before, times, (0, 1))) for each in found) for times in range(4)]
    assert counts[0] == 0
    assert sum(counts) == 300
    assert min(counts[1:]) > 70


def test_image_and_label_turn_together():
    torch.manual_seed(1)
    for each in turned(10, plane=("j", "i")):
        assert torch.equal(each.get_image("image").data, each.get_image("label").data.float())


def test_a_patch_that_is_no_square_in_the_plane_keeps_its_shape():
    torch.manual_seed(2)
    before = subject((4, 4, 3)).get_image("image").numpy()[0]
    for each in turned(10, plane=("i", "k")):
        assert np.array_equal(each.get_image("image").numpy()[0], before[::-1, :, ::-1])


def test_it_turns_as_often_as_asked():
    torch.manual_seed(3)
    transform, before = RandomQuarterTurns(p=0.1), subject((2, 2, 2))
    changed = sum(
        not torch.equal(transform(before).get_image("image").data, before.get_image("image").data) for _ in range(1000)
    )
    assert 60 < changed < 140


def test_a_turn_mirrors_nothing():
    assert mirrored_axes([RandomQuarterTurns()], "RAS") == ()
    assert mirroring([RandomQuarterTurns()], "RAS") is None


def test_a_plane_has_two_axes():
    with pytest.raises(ValueError, match="two of the axes"):
        RandomQuarterTurns(plane=("i", "i"))
