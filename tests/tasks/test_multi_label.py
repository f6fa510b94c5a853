"""Sigmoid: classes that overlap, from the loss to the prediction."""

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import sigmoid_losses
from lightning_atlas.tasks import MultiLabelSegmentation, Task
from lightning_atlas.tasks.multi_label import combinations
from lightning_atlas.types import Batch, Prediction

CLASSES = ["kidney_left", "tumour", "kidney_right"]
# Unknown, outside all, left kidney, its tumour, right kidney, left kidney whose tumours nobody drew.
STATES = torch.tensor([[-1, -1, -1], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [1, -1, 0]], dtype=torch.int8)


def make_batch() -> Batch:
    return Batch(
        image=torch.randn(2, 1, 8, 8, 8),
        label=torch.randint(len(STATES), (2, 8, 8, 8), dtype=torch.int16),
        states=STATES.repeat(2, 1, 1),
        drawn=(STATES >= 0).repeat(2, 1, 1),
        background=torch.tensor([-1, 1, 0, 0, 0, 0], dtype=torch.int8).repeat(2, 1),
        spacing_mm=torch.ones(2, 3),
        affine=torch.eye(4).repeat(2, 1, 1),
        index=torch.arange(2),
        subject=["a", "b"],
        seed=torch.arange(2),
    )


@pytest.fixture
def task() -> MultiLabelSegmentation:
    task = MultiLabelSegmentation(SlidingWindow(patch=(8, 8, 8)))
    task.setup(CLASSES, overlapping=True)
    return task


def masks(prediction: Prediction) -> torch.Tensor:
    """Return the prediction as one mask for each class."""
    pairs = zip(*prediction, strict=True)
    return torch.stack([inside[rows.long()].movedim(-1, 0) for rows, inside in pairs])


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("classes", [1, 3, 70])
def test_a_prediction_holds_the_masks_of_all_classes(threshold, classes):
    logits = torch.randn(2, classes, 5, 6, 7) * torch.tensor([1.0, 0.01]).reshape(2, 1, 1, 1, 1)
    prediction = MultiLabelSegmentation(SlidingWindow(), threshold=threshold).decode(logits)
    assert torch.equal(masks(prediction), logits.sigmoid() > threshold)
    assert not prediction.inside[:, 0].any()


def test_there_is_one_row_for_each_combination_that_occurs():
    logits = torch.full((1, 40, 4, 4, 4), -1.0)
    logits[0, :, :2] = 1.0
    logits[0, 3] = 1.0
    prediction = MultiLabelSegmentation(SlidingWindow()).decode(logits)
    assert prediction.rows.dtype == torch.uint8
    assert sorted(row.nonzero().flatten().tolist() for row in prediction.inside[0]) == [[], list(range(40)), [3]]
    assert len(prediction.rows.unique()) == 2


def test_more_combinations_than_a_byte_holds_are_told_apart():
    logits = torch.randn(20, 8, 8, 8)
    rows, inside = combinations(logits, 0.0)
    assert len(inside) > 300
    assert torch.equal(inside[rows.long()].movedim(-1, 0), logits > 0)
    prediction = MultiLabelSegmentation(SlidingWindow()).decode(logits[None])
    assert prediction.rows.dtype == torch.int16
    assert torch.equal(masks(prediction)[0], logits > 0)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    batch, logits = make_batch(), torch.randn(2, 3, 8, 8, 8, requires_grad=True)
    task = MultiLabelSegmentation(SlidingWindow(), binary_cross_entropy=0.5, dice=2.0, exclusion=3.0)
    losses = task.loss(logits, batch)
    terms = sigmoid_losses(logits, batch["label"], batch["states"], batch["drawn"])
    expected = {name: loss.mean() for name, loss in terms.items()}
    torch.testing.assert_close({name: losses[name] for name in expected}, expected)
    weighted = 0.5 * expected["binary_cross_entropy"] + 2 * expected["dice"] + 3 * expected["exclusion"]
    torch.testing.assert_close(losses["loss"], weighted)
    assert set(MultiLabelSegmentation(SlidingWindow()).loss(logits, batch)) == {"loss", "binary_cross_entropy", "dice"}


def test_logits_that_follow_the_loss_end_inside_both_organ_and_tumour(task):
    batch, logits = make_batch(), torch.zeros(2, 3, 8, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(logits, batch)["loss"].backward()
        optimizer.step()
    prediction = task.decode(logits.detach())
    states = STATES[batch["label"].long()].movedim(-1, 1)
    assert torch.equal(masks(prediction)[states >= 0], (states == 1)[states >= 0])
    assert (logits.detach()[states < 0] == 0).all()
    for split in ("val", "test"):
        task.update(split, prediction, batch)
        assert (task.compute(split).dice == 1).all()
        task.reset(split)


def test_the_head_has_no_output_for_the_background(task):
    assert task.outputs(CLASSES) == 3
    with pytest.raises(ValueError, match="the network has 4 outputs, expected 3: the 3 classes of the data"):
        task.loss(torch.zeros(2, 4, 8, 8, 8), make_batch())


def test_mirrored_windows_swap_the_outputs_of_sided_classes():
    def network(window: torch.Tensor) -> torch.Tensor:
        return torch.cat([window, window * torch.arange(8.0).reshape(1, 1, -1, 1, 1), window**2], 1)

    task, image = MultiLabelSegmentation(SlidingWindow(patch=(8, 8, 8), mirror=True)), torch.rand(1, 1, 8, 8, 8)
    task.setup(CLASSES, ("i",), overlapping=True)
    expected = (network(image) + network(image.flip(2)).flip(2)[:, [2, 1, 0]]) / 2
    torch.testing.assert_close(task.window(network, image), expected)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 50.0])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold is a probability between 0 and 1"):
        MultiLabelSegmentation(SlidingWindow(), threshold=threshold)


def test_a_recipe_can_name_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    window = {"class_path": "lightning_atlas.inference.SlidingWindow"}
    arguments = {"window": window, "threshold": 0.4, "deep_supervision": [1, 0.5]}
    recipe = {"class_path": "lightning_atlas.tasks.MultiLabelSegmentation", "init_args": arguments}
    task = parser.instantiate(parser.parse_object({"task": recipe})).task
    assert isinstance(task, MultiLabelSegmentation)
    assert (task.threshold, task.deep_supervision) == (0.4, [1.0, 0.5])


@pytest.mark.gpu
def test_predictions_on_a_device_are_those_on_the_host():
    logits = torch.randn(2, 6, 9, 8, 7)
    task = MultiLabelSegmentation(SlidingWindow())
    here, there = task.decode(logits), task.decode(logits.cuda())
    assert there.rows.is_cuda
    assert torch.equal(masks(here), masks(Prediction(*(each.cpu() for each in there))))
