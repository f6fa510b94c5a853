import csv

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from lightning_atlas import box_metrics
from lightning_atlas.box_metrics import BoxScores
from lightning_atlas.callbacks.box_report import (
    boxes_figure,
    dataset_table,
    first_boxes,
    middle_plane,
    turned,
    write_boxes,
)
from lightning_atlas.callbacks.overlay import VIEWS, nearest_axes
from lightning_atlas.callbacks.report import RunReport
from lightning_atlas.types import Boxes


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(box_metrics, "DRAWS", 20)


def boxes(*rows, scored=True):
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 8)
    return Boxes(table[:, :6], table[:, 6].long(), table[:, 7] if scored else None)


TRUTH = boxes([1, 1, 1, 4, 4, 4, 0, 1], [4, 4, 2, 7, 7, 5, 1, 1], scored=False)
FOUND = boxes([1, 1, 1, 4, 4, 4, 0, 0.9], [0, 5, 5, 2, 8, 8, 0, 0.5], [4, 4, 2, 7, 7, 5, 1, 0.7])


def affine_of(axes, signs, spacing=(2.0, 3.0, 5.0)):
    affine = np.zeros((4, 4))
    for axis, world in enumerate(axes):
        affine[world, axis] = signs[axis] * spacing[axis]
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize(
    ("axes", "signs"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 0, 2), (-1, -1, 1))]
)
def test_boxes_turn_with_the_image(axes, signs):
    """A box around a bright block is again around it when both are turned."""
    image, affine = np.zeros((9, 8, 7)), affine_of(axes, signs)
    image[2:5, 1:7, 3:4] = 1
    rows = np.array([[2.0, 1, 3, 5, 7, 4, 0, 1]])
    order, backwards = nearest_axes(affine)
    flat = np.flip(image.transpose(order), tuple(axis for axis in range(3) if backwards[axis]))
    (row,) = turned(rows, image.shape, affine)
    low, high = row[:3].astype(int), row[3:6].astype(int)
    block = flat[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    assert block.sum() == block.size == image.sum()


def test_the_plane_cuts_most_of_the_boxes():
    rows = np.array([[0.0, 0, 0, 4, 1, 1, 0, 1], [2, 0, 0, 8, 1, 1, 0, 1]])
    assert middle_plane(rows, 0, 10) in (2, 3)
    assert middle_plane(np.zeros((0, 8)), 0, 10) == 5


def test_a_photograph_is_one_view_without_sides_of_a_body(data):
    batch = data.whole("test", 0)
    batch["boxes"] = [TRUTH]
    scan, picture = (
        boxes_figure(first_boxes(batch, [FOUND], photograph), [0.6, 0.6], ["liver", "spleen"], "title")
        for photograph in (False, True)
    )
    assert (len(scan.axes), len(picture.axes)) == (9, 3)
    assert {"R", "L", "A", "P"} <= {text.get_text() for text in scan.axes[0].texts}
    assert not picture.axes[0].texts


def test_rectangles_lie_where_the_planes_cut_the_boxes(data):
    batch = data.whole("test", 0)
    batch["boxes"] = [TRUTH]
    shown = first_boxes(batch, [FOUND])
    figure = boxes_figure(shown, [0.6, 0.6], ["liver", "spleen"], "title")
    there = {
        (place // 3, place % 3): [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        for place, axes in enumerate(figure.axes)
    }
    assert all(not there[row, 0] for row in range(3))  # the plain image
    spacing = np.array([2.0, 2.0, 5.0])
    for row, view in enumerate(VIEWS):
        # The planes cut one of the two boxes or both, and those found exactly lie as in the reference.
        assert [patch.get_bbox().bounds for patch in there[row, 1]] == [
            patch.get_bbox().bounds for patch in there[row, 2]
        ]
        assert there[row, 1]
        width = 8 * spacing[view.across]
        expected = [
            (
                width - high[view.across] * spacing[view.across],
                low[view.up] * spacing[view.up],
                3 * spacing[view.across],
                3 * spacing[view.up],
            )
            for low, high in zip(TRUTH.corners[:, :3].numpy(), TRUTH.corners[:, 3:].numpy(), strict=True)
        ]
        for patch in there[row, 1]:
            assert any(patch.get_bbox().bounds == pytest.approx(each) for each in expected)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "0.90" in texts or "0.70" in texts
    assert "0.50" not in texts  # below the least score of its class


def scores():
    metric = BoxScores(2)
    for index in range(4):
        metric.update([FOUND], [TRUTH], torch.tensor([index]))
    return metric.compute()


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_scores_and_each_case(tmp_path):
    write_boxes(tmp_path, "validation_", scores(), ["liver", "spleen"], list("abcd"))
    table = rows(tmp_path / "validation_scores.csv")
    assert [row["name"] for row in table] == ["liver", "spleen", "all"]
    assert [row["boxes"] for row in table] == ["4", "4", "8"]
    assert float(table[2]["froc"]) == 1.0
    cases = rows(tmp_path / "validation_cases.csv")
    assert cases[0] == {"subject": "a", "boxes": "2", "found": "2", "false": "1"}
    assert len(cases) == 4
    told = dataset_table(scores().per_dataset(list("xxyy")))
    assert [line.split() for line in told.splitlines()[1:]] == [[each, "1.000", "1.000", "4", "2"] for each in "xy"]


def test_a_run_of_boxes_ends_with_tables_and_a_picture(module, data, make_trainer, tmp_path, monkeypatch, capsys):
    metric = BoxScores(2)

    def step(batch, batch_idx):
        batch["boxes"] = [TRUTH]
        metric.update([FOUND], [TRUTH], batch["index"])
        return {"prediction": [FOUND]}

    def score(split):
        module.results[split] = metric.compute()

    monkeypatch.setattr(module, "test_step", step)
    monkeypatch.setattr(module, "score", score)
    data.hospitals = 2
    trainer = make_trainer(RunReport(), default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.test(module, data, verbose=False)
    told = capsys.readouterr().out
    assert "published" in told
    assert "strict" in told
    assert "hospital 1" in told
    assert {path.name for path in tmp_path.iterdir()} >= {"scores.csv", "cases.csv", "overlay.png"}
