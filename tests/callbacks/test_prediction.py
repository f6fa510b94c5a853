import json

import pytest
import torch

from lightning_atlas.callbacks.prediction import PredictionWriter, file_name


def predict(writer, module, data, make_trainer):
    make_trainer(writer, enable_progress_bar=False).predict(module, data, return_predictions=False)


def test_each_case_is_written_with_the_names_of_its_values(module, data, make_trainer, tmp_path, capsys):
    output = tmp_path / "a folder" / "é"
    predict(PredictionWriter(output), module, data, make_trainer)
    assert sorted(path.name for path in output.iterdir()) == [
        *(f"case {index}.nii.gz" for index in range(4)),
        "labels.json",
    ]
    assert json.loads((output / "labels.json").read_text(encoding="utf-8")) == {
        "0": "background",
        "1": "liver",
        "2": "spleen",
    }
    module.eval()
    expected = module.predict_step(data.whole("predict", 2), 0)[0]
    assert torch.equal(torch.load(output / "case 2.nii.gz"), expected)
    out = capsys.readouterr().out
    assert "wrote 4 predictions" in out
    assert str(output / "case 2.nii.gz") in out


@pytest.mark.parametrize("there", ["case 3.nii.gz", "labels.json"])
def test_nothing_is_computed_where_a_file_would_be_lost(there, module, data, make_trainer, tmp_path, monkeypatch):
    (tmp_path / there).write_text("mine", encoding="utf-8")
    monkeypatch.setattr(type(module), "predict_step", lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match=r"already in .*--overwrite"):
        predict(PredictionWriter(tmp_path), module, data, make_trainer)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text(encoding="utf-8") == "mine"


def test_files_are_replaced_when_that_is_said(module, data, make_trainer, tmp_path):
    (tmp_path / "case 3.nii.gz").write_text("mine", encoding="utf-8")
    predict(PredictionWriter(tmp_path, overwrite=True), module, data, make_trainer)
    assert torch.load(tmp_path / "case 3.nii.gz").shape == (8, 8, 8)


def test_a_failed_write_leaves_no_half_file(module, data, make_trainer, tmp_path, monkeypatch):
    class Broken:
        def save(self, path):
            path.write_text("half", encoding="utf-8")
            raise OSError("no space left")

    monkeypatch.setattr(data, "restore", lambda *_: Broken())
    with pytest.raises(OSError, match="no space left"):
        predict(PredictionWriter(tmp_path), module, data, make_trainer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "subject", ["../../etc/passwd", "..", "a/b", "a\\b", "/root", "C:\\x", "sub:1?*", "ok é 1", ". x "]
)
def test_a_subject_never_leaves_the_folder(subject, tmp_path):
    if subject == "..":
        with pytest.raises(ValueError, match="no file name"):
            file_name(subject)
        return
    path = (tmp_path / file_name(subject)).resolve()
    assert path.parent == tmp_path.resolve()
    assert not set(path.name) & set('<>:"/\\|?*')
    path.touch()


def test_two_subjects_of_one_name_are_refused(module, make_data, make_trainer, tmp_path):
    with pytest.raises(ValueError, match="several subjects"):
        predict(PredictionWriter(tmp_path), module, make_data(names=["Case", "case"]), make_trainer)


def test_writing_nothing_is_an_error(module, data, make_trainer, tmp_path):
    trainer = make_trainer(enable_progress_bar=False)
    trainer.predict(module, data, return_predictions=False)
    with pytest.raises(ValueError, match="nothing was predicted"):
        PredictionWriter(tmp_path).on_predict_end(trainer, module)
