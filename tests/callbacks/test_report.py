import csv
import re
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_atlas.callbacks.baseline import NearestPlaneBaseline
from lightning_atlas.callbacks.curves import History, learning_curves, smooth
from lightning_atlas.callbacks.expectation import Expectation
from lightning_atlas.callbacks.report import RunReport, first_case, write_datasets
from lightning_atlas.metrics import DiceResult
from lightning_atlas.types import Prediction


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(module, data, make_trainer, tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path, "a run", "é")
    callbacks = [Expectation(), NearestPlaneBaseline(), RunReport()]
    trainer = make_trainer(*callbacks, logger=logger, enable_progress_bar=False)
    trainer.fit(module, data)
    folder = tmp_path / "a run" / "é"
    for name in ("recipe.yaml", "checkpoints/last.ckpt"):  # the command line's part
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    trainer.test(module, data, verbose=False)
    return folder, capsys.readouterr().out


def test_the_end_of_a_run_says_what_was_scored_and_where_it_is(run, module):
    folder, out = run
    assert "test on 4 cases: simulated cohort of noise" in out
    assert "the weights after step 6" in out
    assert "copy of the nearest drawn plane: mean Dice 1.0000" in out
    assert "back to the scan's, has mean Dice 0.9000" in out
    assert "expected" in out.split("the fit took")[1]
    for name in ("scores.csv", "cases.csv", "overlay.png", "curves.png"):
        assert (folder / name).is_file()
        assert f"  {name}" in out
    assert f'python -m lightning_atlas predict "{folder}" --input DIR --output DIR' in out
    assert f'tensorboard --logdir "{folder}"' in out


def test_the_tables_hold_the_scores(run, module):
    folder, _ = run
    result = module.results["test"]
    scores = rows(folder / "scores.csv")
    assert [row["class"] for row in scores] == ["liver", "spleen", "mean"]
    assert [float(row["dice"]) for row in scores[:2]] == pytest.approx(result.per_class().tolist(), abs=1e-5)
    assert float(scores[2]["dice"]) == pytest.approx(result.mean, abs=1e-5)
    assert [float(row["dice of copy of the nearest drawn plane"]) for row in scores] == [1, 1, 1]
    assert float(scores[0]["reference_ml"]) == pytest.approx(27 * 0.02)
    assert scores[0]["false_positive_ml"] == ""
    cases = rows(folder / "cases.csv")
    assert [row["subject"] for row in cases] == [f"case {index}" for index in range(4)]
    assert [float(row["liver"]) for row in cases] == pytest.approx(result.dice[:, 0].tolist(), abs=1e-5)


def test_the_pictures_are_not_blank_and_stand_in_tensorboard_too(run):
    folder, _ = run
    events = EventAccumulator(str(folder)).Reload()
    for name in ("overlay", "curves"):
        picture = matplotlib.image.imread(folder / f"{name}.png")
        assert picture[..., :3].std() > 0.05
        (image,) = events.Images(name)
        assert (image.height, image.width) == picture.shape[:2]


def test_several_datasets_have_a_table_of_their_own(module, data, make_trainer, tmp_path, capsys):
    data.hospitals = 2
    trainer = make_trainer(RunReport(), default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.test(module, data, verbose=False)
    dice = module.results["test"].dice
    out = capsys.readouterr().out
    found = rows(tmp_path / "datasets.csv")
    assert [(row["dataset"], row["class"]) for row in found] == [
        (f"hospital {number}", name) for number in range(2) for name in ("liver", "spleen", "mean")
    ]
    for number, mean in enumerate(row for row in found if row["class"] == "mean"):
        expected = dice[number::2].mean().item()
        assert float(mean["dice"]) == pytest.approx(expected, abs=1e-5)
        assert re.search(rf"hospital {number} +{expected:.4f} +2 +2", out)
    assert "datasets.csv" in out


def test_a_class_that_a_dataset_never_drew_has_no_row_there(tmp_path):
    nan = torch.nan
    drawn = torch.tensor([[1.0, nan], [1.0, nan]], dtype=torch.double)
    result = DiceResult(torch.arange(2), drawn, drawn, drawn, drawn * nan)
    write_datasets(tmp_path / "datasets.csv", {"partial": result}, ["liver", "spleen"])
    assert [row["class"] for row in rows(tmp_path / "datasets.csv")] == ["liver", "mean"]


def test_of_classes_that_overlap_the_last_is_seen(data):
    batch: Any = {
        **data.whole("test", 0),
        "states": torch.tensor([[[-1, -1], [0, 0], [1, -1], [1, 1]]], dtype=torch.int8),
    }
    inside = torch.tensor([[[0, 0], [1, 1], [1, 0]]], dtype=torch.bool)
    label = batch["label"].long()
    shown = first_case(batch, Prediction(torch.where(label == 3, 1, torch.where(label == 2, 2, 0)), inside))
    expected = torch.tensor([-1, 0, 1, 2])[label[0]].numpy()
    assert np.array_equal(shown.scene.reference, expected)
    assert np.array_equal(shown.scene.prediction, expected)


def test_validate_reports_too_and_leaves_the_test_alone(module, data, make_trainer, tmp_path, capsys):
    trainer = make_trainer(RunReport(), default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.validate(module, data, verbose=False)
    assert "validation on 4 cases" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.*")} == {
        f"validation_{each}" for each in ("scores.csv", "cases.csv", "overlay.png")
    }


def test_a_resumed_run_draws_the_whole_of_it(module, data, make_trainer, tmp_path):
    first = make_trainer(RunReport(), max_epochs=1, enable_progress_bar=False)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    report = RunReport()
    make_trainer(report, enable_progress_bar=False).fit(module, data, ckpt_path=tmp_path / "last.ckpt")
    assert report.history.steps == [1, 2, 3, 4, 5, 6]
    assert report.history.validated == [2, 4, 6]


def test_a_long_history_stays_short_and_even():
    history = History()
    for step in range(1, 50_001):
        history.add_step(step, step / 2, [step / 4])
    assert 500 < len(history.steps) < History.LIMIT
    assert set(np.diff(history.steps)) == {history.stride}
    assert history.losses == [step / 2 for step in history.steps]
    assert history.rates == [[step / 4] for step in history.steps]


def test_smoothing_keeps_a_constant_and_follows_a_change():
    assert smooth([3.0] * 10, 4.0) == pytest.approx(3)
    step = smooth([0.0] * 200 + [1.0] * 200, 10.0)
    assert step[209] == pytest.approx(1 - np.exp(-1), abs=0.01)


def test_curves_are_drawn_without_validation_too():
    history = History([1, 2], [0.5, 0.4], [[0.1], [0.1]])
    figure = learning_curves(history, "title")
    assert "no validation" in [text.get_text() for text in figure.axes[1].texts]
