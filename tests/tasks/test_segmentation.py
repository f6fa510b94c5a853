import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import nn

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.losses import softmax_losses
from lightning_atlas.tasks import Segmentation, Task
from lightning_atlas.types import Batch, Prediction

CLASSES = ["liver", "spleen"]
STATES = torch.tensor([[-1, -1], [0, 0], [1, 0], [0, 1], [0, -1]], dtype=torch.int8)
BACKGROUND = torch.tensor([-1, 1, 0, 0, -1], dtype=torch.int8)
DRAWN = torch.tensor([[0, 0], [1, 1], [1, 1], [1, 1], [1, 0]], dtype=torch.bool)


def make_batch(cases: int = 2) -> Batch:
    return Batch(
        image=torch.randn(cases, 1, 8, 8, 8),
        label=torch.randint(len(STATES), (cases, 8, 8, 8), dtype=torch.uint8),
        states=STATES.repeat(cases, 1, 1),
        drawn=DRAWN.repeat(cases, 1, 1),
        background=BACKGROUND.repeat(cases, 1),
        spacing_mm=torch.tensor([[1.0, 2.0, 5.0]]).repeat(cases, 1),
        affine=torch.eye(4).repeat(cases, 1, 1),
        index=torch.arange(cases),
        subject=[f"case {number}" for number in range(cases)],
        seed=torch.arange(cases),
    )


@pytest.fixture
def task() -> Segmentation:
    task = Segmentation(SlidingWindow(patch=(8, 8, 8)))
    task.setup(CLASSES)
    return task


def test_the_loss_is_the_weighted_sum_of_its_parts():
    batch, logits = make_batch(), torch.randn(2, 3, 8, 8, 8, requires_grad=True)
    losses = Segmentation(SlidingWindow(), cross_entropy=0.5, dice=2.0, marginal_dice=3.0).loss(logits, batch)
    terms = softmax_losses(logits, batch["label"], batch["states"], batch["drawn"], batch["background"])
    cross_entropy, dice, marginal = (terms[name].mean() for name in ("cross_entropy", "dice", "marginal_dice"))
    torch.testing.assert_close(losses["cross_entropy"], cross_entropy)
    torch.testing.assert_close(losses["dice"], dice)
    torch.testing.assert_close(losses["loss"], 0.5 * cross_entropy + 2 * dice + 3 * marginal)
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    assert set(Segmentation(SlidingWindow()).loss(logits, batch)) == {"loss", "cross_entropy", "dice"}


def test_logits_that_follow_the_loss_end_at_the_drawn_label(task: Segmentation):
    batch, logits = make_batch(), torch.zeros(2, 3, 8, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(logits, batch)["loss"].backward()
        optimizer.step()
    prediction, label = task.decode(logits), batch["label"]
    known = (label >= 1) & (label <= 3)
    assert torch.equal(prediction.rows[known], label[known] - 1)
    assert (prediction.rows[label == 4] != 1).all()
    assert torch.equal(prediction.inside[0], torch.eye(3, dtype=torch.bool)[:, 1:])
    assert (logits.detach().movedim(1, -1)[label == 0] == 0).all()


def test_a_perfect_prediction_scores_one_and_reset_forgets(task: Segmentation):
    batch = make_batch()
    output = torch.tensor([1, 0, 1, 2, 2])[batch["label"].long()]
    logits = F.one_hot(output, 3).movedim(-1, 1).float()
    prediction = task.decode(task.infer(nn.Identity(), logits))
    for split in ("val", "test"):
        task.update(split, prediction, batch)
        result = task.compute(split)
        assert (result.dice == 1).all()
        liver_ml = (batch["label"] == 2).sum((1, 2, 3)) * 0.01
        torch.testing.assert_close(result.reference_ml[:, 0].float(), liver_ml)
        task.reset(split)
        task.update(split, Prediction(torch.zeros_like(prediction.rows), prediction.inside), batch)
        assert task.compute(split).mean == 0


def test_the_splits_keep_their_scores_apart(task: Segmentation):
    batch = make_batch()
    prediction = task.decode(torch.zeros(2, 3, 8, 8, 8))
    task.update("val", prediction, batch)
    task.update("test", prediction, {**batch, "index": batch["index"] + 7})
    assert task.compute("val").index.tolist() == [0, 1]
    assert task.compute("test").index.tolist() == [7, 8]


def test_the_head_has_an_output_for_the_background(task: Segmentation):
    assert task.outputs(CLASSES) == 3
    with pytest.raises(ValueError, match="the network has 4 outputs, expected 3: the background and the 2 classes"):
        task.loss(torch.zeros(2, 4, 8, 8, 8), make_batch())


def test_more_than_255_classes_are_told_apart(task: Segmentation):
    logits = torch.zeros(1, 301, 1, 1, 2)
    logits[0, 300, 0, 0, 0] = 1
    prediction = task.decode(logits)
    assert prediction.rows.flatten().tolist() == [300, 0]
    assert prediction.inside[0, 300].nonzero().flatten().tolist() == [299]


def test_mirrored_windows_swap_the_outputs_of_sided_classes_behind_the_background():
    def network(window: torch.Tensor) -> torch.Tensor:
        return torch.cat([window, window * torch.arange(8.0).reshape(1, 1, -1, 1, 1), window**2, window**3], 1)

    task, image = Segmentation(SlidingWindow(patch=(8, 8, 8), mirror=True)), torch.rand(1, 1, 8, 8, 8)
    task.setup(["hip_left", "spleen", "hip_right"], ("i",))
    expected = (network(image) + network(image.flip(2)).flip(2)[:, [0, 3, 2, 1]]) / 2
    torch.testing.assert_close(task.window(network, image), expected)


def test_the_task_adds_nothing_to_a_checkpoint(task: Segmentation):
    task.update("val", task.decode(torch.zeros(2, 3, 8, 8, 8)), make_batch())
    assert not task.state_dict()
    assert not list(task.parameters())


def test_a_recipe_can_name_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    window = {"class_path": "lightning_atlas.inference.SlidingWindow", "init_args": {"patch": [64, 64, 16]}}
    recipe = {"class_path": "lightning_atlas.tasks.Segmentation", "init_args": {"window": window, "dice": 0.5}}
    task = parser.instantiate(parser.parse_object({"task": recipe})).task
    assert isinstance(task, Segmentation)
    assert task.window.patch == (64, 64, 16)
    assert task.weights == {"cross_entropy": 1.0, "dice": 0.5, "marginal_dice": 0.0}


def test_a_class_needs_a_probability_above_the_threshold():
    logits = torch.randn(2, 4, 5, 6, 7) * 2
    likely = logits.softmax(1)
    expected = torch.where(likely[:, 1:].amax(1) > 0.5, likely[:, 1:].argmax(1) + 1, 0)
    rows = Segmentation(SlidingWindow(), threshold=0.5).decode(logits).rows
    assert torch.equal(rows.long(), expected)
    assert (rows != Segmentation(SlidingWindow()).decode(logits).rows).any()
    with pytest.raises(ValueError, match=r"threshold is a probability from 0 to below 1, found 1\.0"):
        Segmentation(SlidingWindow(), threshold=1.0)
