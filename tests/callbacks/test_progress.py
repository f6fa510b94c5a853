import io
import re
import sys

import pytest

from lightning_atlas.callbacks.progress import WholeRunProgress, run_length, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_counts_the_steps_of_the_whole_run(module, data, make_trainer, monkeypatch):
    terminal, made = Terminal(), []
    monkeypatch.setattr(sys, "stdout", terminal)
    init = WholeRunProgress.init_train_tqdm
    monkeypatch.setattr(WholeRunProgress, "init_train_tqdm", lambda self: made.append(init(self)) or made[-1])
    make_trainer(WholeRunProgress()).fit(module, data)
    (bar,) = made
    assert (bar.total, bar.n) == (6, 6)
    shown = re.split(r"[\r\n]", terminal.getvalue())
    assert any("6/6" in line and "loss" in line and "val Dice" in line for line in shown)
    assert not any("Epoch" in line or "Validation" in line for line in shown)


def test_a_resumed_run_starts_where_it_stopped(module, data, make_trainer, tmp_path, monkeypatch):
    first = make_trainer(max_epochs=1)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    monkeypatch.setattr(sys, "stdout", Terminal())
    progress = WholeRunProgress()
    make_trainer(progress).fit(module, data, ckpt_path=tmp_path / "last.ckpt")
    bar = progress.train_progress_bar
    assert (bar.initial, bar.n, bar.total) == (2, 6, 6)


def test_without_a_terminal_there_are_few_lines(module, make_data, make_trainer, capsys):
    make_trainer(WholeRunProgress(), max_epochs=2).fit(module, make_data(cases=100))
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 10 + 2
    assert "step 100 of 100, validated" in steps[-1]
    assert not any("\r" in line or "%|" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 6), ({"max_steps": 4}, 4), ({"accumulate_grad_batches": 2}, 3), ({"max_steps": 4, "max_epochs": -1}, 4)],
)
def test_run_length_is_the_number_of_steps_that_are_made(options, steps, module, data, make_trainer):
    trainer = make_trainer(**options)
    trainer.fit(module, data)
    assert run_length(trainer) == trainer.global_step == steps


def test_the_module_says_how_long_the_run_is(module, data, make_trainer):
    type(module).total_steps = property(lambda self: 77)
    try:
        trainer = make_trainer(max_epochs=1)
        trainer.fit(module, data)
        assert run_length(trainer) == 77
    finally:
        del type(module).total_steps


def test_any_text_can_be_said_where_the_console_knows_few_characters(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    say("foie gras: é, 肝")
    sys.stdout.flush()
    assert raw.getvalue().decode("cp1252").strip() == "foie gras: é, ?"
