import pytest
import torch
from monai.apps.detection.utils.box_coder import BoxCoder

from lightning_atlas.networks.detection.box_losses import AnchorLoss
from lightning_atlas.networks.detection.matching import IGNORED, NOTHING

CODER = BoxCoder(weights=(1.0,) * 6)
ANCHORS = torch.tensor([[0.0, 0, 0, 8, 8, 8], [8.0, 0, 0, 16, 8, 8], [0.0, 8, 0, 8, 16, 8]])
BOXES = torch.tensor([[0.0, 1, 0, 8, 7, 9], [9.0, 0, 0, 15, 8, 8]])


def test_the_focal_loss_is_that_of_the_paper_and_the_ignored_cost_nothing():
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    matched, classes = torch.tensor([1, NOTHING, IGNORED, 0]), torch.tensor([1, 0])
    wanted = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
    p = logits[[0, 1, 3]].sigmoid()
    ours = torch.where(wanted == 1, p, 1 - p)
    expected = -(torch.where(wanted == 1, 0.25, 0.75) * (1 - ours) ** 2 * ours.log()).sum() / 2
    torch.testing.assert_close(AnchorLoss(classification="focal").of_classes(logits, matched, classes), expected)


def test_hard_negatives_are_those_that_seem_most_to_be_a_box():
    seeming = torch.arange(200.0)
    matched = torch.full((200,), NOTHING)
    matched[[3, 5]], matched[[199, 198]] = 0, IGNORED
    loss = AnchorLoss(samples=12, positive_share=0.25, pool=2.0, least_negatives=0)
    torch.manual_seed(0)
    for _ in range(5):
        asked = loss.sample(seeming, matched).tolist()
        assert sorted(asked[:2]) == [3, 5]
        assert len(asked[2:]) == 2 * 3  # three others for each
        assert set(asked[2:]) <= set(range(186, 198))  # twice as many, the hardest
    assert len(AnchorLoss(least_negatives=16).sample(seeming, matched)) == 2 + 16


@pytest.mark.parametrize("regression", ["giou", "smooth_l1"])
def test_a_box_that_is_met_costs_nothing_and_one_that_is_not_falls_by_its_gradient(regression):
    loss, matched = AnchorLoss(regression=regression), torch.tensor([0, 1, NOTHING])
    exact = torch.zeros(3, 6)
    exact[:2] = CODER.encode_single(BOXES, ANCHORS[:2])
    assert float(loss.of_boxes(exact, ANCHORS, matched, BOXES, CODER)) < 1e-5
    deltas = torch.zeros(3, 6, requires_grad=True)
    before = loss.of_boxes(deltas, ANCHORS, matched, BOXES, CODER)
    before.backward()
    assert deltas.grad is not None
    assert not deltas.grad[2].any()
    assert loss.of_boxes(deltas.detach() - 0.01 * deltas.grad, ANCHORS, matched, BOXES, CODER) < before


def test_smooth_l1_is_the_mean_over_the_boxes_of_the_sum_over_the_corners():
    loss, matched = AnchorLoss(regression="smooth_l1", beta=1 / 9), torch.tensor([0, 1, NOTHING])
    aims = CODER.encode_single(BOXES, ANCHORS[:2]).abs()
    expected = torch.where(aims < 1 / 9, aims**2 / 2 * 9, aims - 1 / 18).sum() / 2
    torch.testing.assert_close(loss.of_boxes(torch.zeros(3, 6), ANCHORS, matched, BOXES, CODER), expected)


@pytest.mark.parametrize("settings", [{"positive_share": 0.0}, {"positive_share": 1.5}, {"samples": 0}])
def test_settings_by_which_nothing_is_learned_are_refused(settings):
    with pytest.raises(ValueError, match="AnchorLoss"):
        AnchorLoss(**settings)


def test_without_a_box_the_boxes_cost_nothing_and_still_have_a_gradient():
    deltas = torch.randn(3, 6, requires_grad=True)
    cost = AnchorLoss().of_boxes(deltas, ANCHORS, torch.full((3,), NOTHING), BOXES[:0], CODER)
    cost.backward()
    assert cost == 0
    assert deltas.grad is not None
