"""Deep supervision, and which task fits which classes."""

import pytest
import torch
from torch import nn

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import softmax_losses
from lightning_atlas.pyramid import coarser
from lightning_atlas.tasks import MultiLabelSegmentation, Segmentation
from lightning_atlas.tasks.voxels import label_at
from lightning_atlas.types import Batch

STATES = torch.tensor([[-1, -1], [0, 0], [1, 0], [0, 1]], dtype=torch.int8)
KINDS = {Segmentation: 3, MultiLabelSegmentation: 2}


def make_batch(shape=(8, 8, 8)) -> Batch:
    label = torch.randint(1, len(STATES), (2, *shape), dtype=torch.int16)
    label[..., [each for each in range(shape[2]) if each % 5]] = 0  # every fifth plane was drawn
    return Batch(
        image=torch.randn(2, 1, *shape),
        label=label,
        states=STATES.repeat(2, 1, 1),
        drawn=(STATES >= 0).repeat(2, 1, 1),
        background=torch.tensor([-1, 1, 0, 0], dtype=torch.int8).repeat(2, 1),
        spacing_mm=torch.ones(2, 3),
        affine=torch.eye(4).repeat(2, 1, 1),
        index=torch.arange(2),
        subject=["a", "b"],
        seed=torch.arange(2),
    )


def pyramid(outputs: int, *sides: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(2, outputs, *each, requires_grad=True) for each in sides]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, [4.0, 2.0, 1.0], [1.0, 0.0, 3.0]])
def test_the_loss_of_several_outputs_is_their_weighted_mean(kind, weights):
    batch, outputs = make_batch(), pyramid(KINDS[kind], (8, 8, 8), (4, 4, 8), (2, 2, 4))
    losses = kind(SlidingWindow(), deep_supervision=weights).loss(outputs, batch)
    alone = []
    for output, factor in zip(outputs, [(1, 1, 1), (2, 2, 1), (4, 4, 2)], strict=True):
        label = batch["label"]
        if factor[0] > 1:
            label = coarser(label, batch["states"], batch["drawn"], batch["background"], factor)
        alone.append(kind(SlidingWindow()).loss(output, {**batch, "label": label}))
    share = torch.tensor(weights or [4.0, 2.0, 1.0])
    for name, value in losses.items():
        expected = (share * torch.stack([each[name] for each in alone])).sum() / share.sum()
        torch.testing.assert_close(value, expected)
    losses["loss"].backward()
    assert all(output.grad is not None for output in outputs)  # a run on several devices needs one for each


def test_one_output_in_a_list_is_the_ordinary_loss():
    batch, (logits,) = make_batch(), pyramid(3, (8, 8, 8))
    task = Segmentation(SlidingWindow())
    terms = softmax_losses(logits, batch["label"], batch["states"], batch["drawn"], batch["background"])
    expected = (terms["cross_entropy"] + terms["dice"]).mean()
    for given in (logits, [logits], (logits,)):
        torch.testing.assert_close(task.loss(given, batch)["loss"], expected)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 8, 11)])
def test_drawn_planes_reach_every_resolution_and_the_others_stay_without_gradient(shape):
    batch = make_batch(shape)
    sides = [tuple(-(-side // step) for side in shape) for step in (1, 2, 4)]
    outputs = pyramid(3, *sides)
    Segmentation(SlidingWindow()).loss(outputs, batch)["loss"].backward()
    for output, step in zip(outputs, (1, 2, 4), strict=True):
        assert output.grad is not None
        drawn = {plane // step for plane in range(0, shape[2], 5)}
        moved = output.grad.abs().sum((0, 1, 2, 3)) > 0
        assert set(moved.nonzero().flatten().tolist()) == drawn


def test_outputs_and_weights_must_fit():
    batch = make_batch()
    with pytest.raises(ValueError, match="deep_supervision has 3 weights, but the network returns 1 output; give it 1"):
        Segmentation(SlidingWindow(), deep_supervision=[1.0, 0.5, 0.25]).loss(torch.zeros(2, 3, 8, 8, 8), batch)
    with pytest.raises(ValueError, match="5x5x5 voxels, which is no whole part of the patch's 8x8x8"):
        label_at(torch.zeros(2, 3, 5, 5, 5), batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dice": -1.0}, "dice weighs a part of the loss; found -1.0 below 0"),
        ({"deep_supervision": [1.0, -0.5]}, "deep_supervision weighs a part of the loss; found -0.5"),
        ({"deep_supervision": []}, "give deep_supervision a weight above 0"),
        ({"deep_supervision": [0.0, 0.0]}, "give deep_supervision a weight above 0"),
    ],
)
def test_weights_out_of_range_are_named(kind, given, told):
    with pytest.raises(ValueError, match=told):
        kind(SlidingWindow(), **given)


def test_a_loss_without_terms_is_refused():
    with pytest.raises(ValueError, match="give cross_entropy, dice, marginal_dice a weight above 0"):
        Segmentation(SlidingWindow(), cross_entropy=0.0, dice=0.0)
    with pytest.raises(ValueError, match="give binary_cross_entropy, dice, exclusion a weight above 0"):
        MultiLabelSegmentation(SlidingWindow(), binary_cross_entropy=0.0, dice=0.0)


def test_a_task_says_what_to_change_where_the_classes_are_of_the_other_kind():
    with pytest.raises(ValueError, match=r"model\.init_args\.task\.class_path: MultiLabelSegmentation"):
        Segmentation(SlidingWindow()).setup(["liver", "tumour"], overlapping=True)
    with pytest.raises(ValueError, match=r"data\.init_args\.classes: \{class_path: Classes.*exclusive: false"):
        MultiLabelSegmentation(SlidingWindow()).setup(["liver", "tumour"])
    assert not Segmentation(SlidingWindow()).scores
    assert isinstance(Segmentation(SlidingWindow()), nn.Module)
