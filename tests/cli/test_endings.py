"""A run that ends early says so in a few lines; a bug keeps its traceback."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def failing(command, folder):
    def run(kind, epoch=1):
        text = f"trainer: {{callbacks: [{{class_path: toy_parts.Fail, init_args: {{kind: {kind}, epoch: {epoch}}}}}]}}"
        (folder / "fail.yaml").write_text(text, encoding="utf-8")
        return command("fit", "base.yaml", "fail.yaml")

    return run


def own_lines(err):
    return [
        line for line in err.splitlines() if "site-packages" not in line and "KeyboardInterrupt" not in line and line
    ]


def test_ctrl_c_says_where_the_last_checkpoint_is(failing, folder):
    code, _, err = failing("interrupt")
    (checkpoint,) = folder.rglob("last.ckpt")
    assert code == 130
    assert own_lines(err)[-1] == f"stopped by Ctrl-C; last checkpoint: {checkpoint}"


def test_ctrl_c_before_the_first_checkpoint_says_that_there_is_none(failing):
    code, _, err = failing("interrupt", epoch=0)
    assert code == 130
    assert own_lines(err)[-1] == "stopped by Ctrl-C; no checkpoint was written yet"


@pytest.mark.parametrize("kind", ["host memory", "device memory"])
def test_exhausted_memory_ends_in_five_lines(failing, kind):
    code, _, err = failing(kind)
    lines = err[err.index("error:") :].splitlines()
    assert code == 1
    assert 1 <= len(lines) <= 5
    assert "Traceback" not in err


def test_a_missing_file_is_named_without_a_traceback(failing):
    code, _, err = failing("missing file")
    assert code == 2
    assert "error: there is no file scan_017.nii.gz" in err


def test_a_bug_keeps_its_traceback(failing):
    with pytest.raises(ValueError, match="something unforeseen"):
        failing("bug")


@pytest.mark.parametrize(("build", "driver", "told"), [(None, True, True), (None, False, False), ("12.6", True, False)])
def test_a_driver_beside_a_cpu_build_of_torch_is_told_in_one_line(command, monkeypatch, build, driver, told):
    monkeypatch.setattr("torch.version.cuda", build)
    monkeypatch.setattr(
        "lightning_atlas.cli.endings.shutil.which", lambda name: "/usr/bin/nvidia-smi" if driver else None
    )
    monkeypatch.setattr("lightning_atlas.cli.endings.DRIVER", Path("no such file"))
    _, out, _ = command("fit", "base.yaml", "--trainer.fast_dev_run=true")
    lines = [line for line in out.splitlines() if "CPU build" in line]
    assert len(lines) == told
    assert all("pip install" in line for line in lines)
    assert "CPU build" not in command("validate", "base.yaml", "--trainer.fast_dev_run=true")[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_a_terminated_run_does_not_pass_for_a_finished_one(command, folder):
    text = "trainer: {callbacks: [{class_path: toy_parts.Terminate}]}"
    (folder / "terminated.yaml").write_text(text, encoding="utf-8")
    code, _, err = command("fit", "base.yaml", "terminated.yaml")
    assert code == 143
    assert own_lines(err)[-1].startswith("stopped by SIGTERM; ")
