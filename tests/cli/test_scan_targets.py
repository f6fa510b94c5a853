"""Whole scans through the command line: a folder of scans and a table of targets."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder

RECIPES = recipes_folder()
TASKS = sorted((RECIPES / "task").glob("*.yaml"))
SMALL = (
    "--model.network.features=[4, 8]",
    "--data.patches.size=[16, 16, 16]",
    "--data.patches.per_epoch=6",
    "--data.preprocess=[]",
    "--data.augment=[]",
    "--trainer.max_epochs=1",
    "--trainer.num_sanity_val_steps=0",
)

WINDOW = "--model.task.window.patch=[16, 16, 16]"


@pytest.fixture
def scans(tmp_path):
    """Ten scans, and a table that says how bright each is; of one nobody knows."""
    folder = tmp_path / "scans"
    folder.mkdir()
    lines = ["subject,bright,target"]
    for number in range(10):
        noise = np.random.default_rng(number).normal(size=(16, 16, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(noise + number, np.eye(4)), folder / f"s{number}.nii.gz")
        lines.append(f"s{number},{number if number != 3 else ''},{'light' if number > 4 else 'dark'}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def learn(task, names, *more, recipes=()):
    options = [
        "--data.source.images=scans",
        "--data.targets.table=table.csv",
        f"--data.targets.names={json.dumps(names)}",
    ]
    options += [*SMALL, *more, *(() if recipes else (WINDOW,))]
    return main(["fit", "target/my_scans", f"task/{task}", *recipes, *options])


def rows(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", TASKS, ids=lambda path: path.stem)
def test_every_task_overlay_parses_on_a_target_and_is_short(task, capsys):
    assert main(["fit", "target/my_scans", f"task/{task.stem}", "start/starter", "--print_config"]) == 0
    assert ("LabelBoxes" if task.stem == "detection" else "table: TABLE") in capsys.readouterr().out
    assert len(task.read_text(encoding="utf-8").splitlines()) <= 20


@pytest.mark.slow
def test_values_are_learned_scored_predicted_and_exported(scans, capsys):
    assert learn("regression", ["bright"]) == 0
    (run,) = Path("runs").glob("*/*")
    assert "mae" in capsys.readouterr().out
    (row, last) = rows(run / "scores.csv")
    assert (row["name"], last["name"]) == ("bright", "all")
    assert float(row["mae_low"]) <= float(row["mae"]) <= float(row["mae_high"])
    assert set(rows(run / "cases.csv")[0]) == {"subject", "true bright", "bright"}
    assert (run / "predictions.png").is_file()

    Path("table.csv").rename("moved.csv")  # elsewhere there is no such table
    assert main(["predict", str(run), "--input", "scans", "--output", "found"]) == 0
    found = rows("found/predictions.csv")
    assert [each["subject"] for each in found] == [f"s{number}" for number in range(10)]
    assert main(["predict", str(run), "--input", "scans", "--output", "found"]) == 2
    assert "predictions.csv is there already" in capsys.readouterr().err

    assert main(["export", str(run), "--output", "handed"]) == 0
    assert main(["predict", "--weights", "handed", "--input", "scans", "--output", "again"]) == 0
    ours, theirs = ([float(row["bright"]) for row in each] for each in (found, rows("again/predictions.csv")))
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert "says 1 numbers of a scan" in Path("handed/README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["inspect", "handed"]) == 0
    assert "PooledEncoder" in capsys.readouterr().out
    assert main(["export", str(run), "--output", "bundle", "--bundle"]) == 2
    assert "leave out --bundle" in capsys.readouterr().err
    torch.load(next(run.glob("checkpoints/*.ckpt")), weights_only=True)


@pytest.mark.slow
def test_classes_are_learned_from_the_starter_weights(scans, capsys):
    starter = ("--model.network.features=[16, 32, 64, 96]", "--model.weights=starter_abdomen_ct")
    assert learn("classification", ["dark", "light"], *starter) == 2
    assert "spacing_mm" in capsys.readouterr().err  # what the weights expect of an image is asked here too
    assert learn("classification", ["dark", "light"], *starter, "--model.contract=adopt") == 0
    told = capsys.readouterr().out
    assert "26 left over" in told
    assert "accuracy" in told


@pytest.mark.slow
def test_labels_are_learned_of_a_whole_scan_at_once(scans, capsys, tmp_path):
    whole = tmp_path / "whole.yaml"
    whole.write_text("model: {init_args: {task: {init_args: {window: null}}}}\n", encoding="utf-8")
    lines = ["subject,nodule,effusion", *(f"s{n},{int(n > 4)},{n % 2 if n else ''}" for n in range(10))]
    Path("table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert learn("multi_label", ["nodule", "effusion"], recipes=[str(whole)]) == 0
    (run,) = Path("runs").glob("*/*")
    assert [row["name"] for row in rows(run / "scores.csv")] == ["nodule", "effusion", "all"]
    assert main(["predict", str(run), "--input", "scans", "--output", "found"]) == 0
    assert set(rows("found/predictions.csv")[0]) == {"subject", "labels", "p(nodule)", "p(effusion)"}
    assert main(["export", str(run), "--output", "handed"]) == 0
    assert main(["predict", "--weights", "handed", "--input", "scans", "--output", "again"]) == 0
    assert rows("again/predictions.csv")[3]["labels"] == rows("found/predictions.csv")[3]["labels"]
    assert learn("multi_label", ["target"], recipes=[str(whole)]) == 2
    assert "no column 'target'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_class_that_nobody_named_is_one_clear_error(scans, capsys):
    assert learn("classification", ["dark", "lite"]) == 2
    told = capsys.readouterr().err
    assert "the class is 'light', which is none of the names; did you mean 'lite'?" in told
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) <= 8
