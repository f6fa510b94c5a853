import re

import pytest

from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import read_request
from lightning_atlas.cli.run_folder import FOLDER_VARIABLE, forget_run_folder, made_in, make_run_folder


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "quickstart" / "now"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: null", encoding="utf-8")
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


def test_predictions_never_replace_the_scans(run, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    words = [str(run), "--input", str(scans), "--output", f"{scans}/../scans", "--overwrite"]
    with pytest.raises(CommandError, match="is the folder of the scans"):
        read_request("predict", words)


def test_a_run_stands_for_its_last_checkpoint(run):
    assert read_request("fit", ["quickstart", "--ckpt_path", str(run)]).checkpoint == run / "checkpoints" / "last.ckpt"


def test_recipes_may_follow_one_that_is_named_by_its_option():
    words = ["--config", "quickstart", "start/scratch", "--data.seed", "3", "--config=method/full", "machine/cpu"]
    request = read_request("fit", words)
    assert [path.stem for path in request.configs] == ["quickstart", "scratch", "full", "cpu"]
    assert request.options == ["--data.seed", "3"]


def test_a_recipe_behind_an_option_is_told_from_its_value():
    with pytest.raises(CommandError, match="machine/smoke is a recipe: write recipes before the options"):
        read_request("fit", ["quickstart", "--model.weights", "starter_abdomen_ct", "machine/smoke"])
    assert read_request("fit", ["quickstart", "--model.weights", "machine/smoke"]).options[-1] == "machine/smoke"


def test_a_typed_checkpoint_goes_before_the_last_one(run):
    best = run / "checkpoints" / "best.ckpt"
    best.touch()
    assert read_request("test", [str(run), f"--ckpt_path={best}"]).checkpoint == best
    with pytest.raises(CommandError, match=r"no such file or run; near: .*best\.ckpt"):
        read_request("test", [str(run), f"--ckpt_path={best.with_name('bets.ckpt')}"])


def test_a_folder_of_runs_is_no_run_and_names_its_newest(run):
    with pytest.raises(CommandError, match=re.escape(f"the newest run in it: {run.as_posix()}")):
        read_request("test", [str(run.parent)])


def test_scores_of_a_changed_run_do_not_replace_its_own(run):
    assert not read_request("test", [str(run), "--trainer.accelerator=cpu"]).changes_the_run
    assert read_request("test", [str(run), "--data.seed=3"]).changes_the_run
    assert read_request("test", [str(run), "quickstart"]).changes_the_run


def test_a_run_remembers_where_its_command_was_typed(run, tmp_path):
    assert made_in(run) is None
    (run / "environment.txt").write_text(f"python: 3\nfolder: {tmp_path}\n", encoding="utf-8")
    assert made_in(run) == tmp_path


def test_a_folder_in_which_nothing_was_written_goes_away(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    empty = make_run_folder(tmp_path, "quickstart")
    forget_run_folder()
    used = make_run_folder(tmp_path, "quickstart")
    (used / "recipe.yaml").touch()
    forget_run_folder()
    assert (empty.exists(), used.exists()) == (empty == used, True)


def test_a_later_process_of_a_launcher_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    make_run_folder(tmp_path, "quickstart")
    assert list(tmp_path.iterdir()) == []
