import json

import pytest
import torch

from lightning_atlas.callbacks.prediction import PredictionWriter, file_name, write_masks
from lightning_atlas.contract import Contract
from lightning_atlas.types import Prediction


class Breaking:
    """A volume of which some files are written and one is written by half.

    Args:
        whole: Files that are written.
        error: How it ends then.
    """

    def __init__(self, whole, error=None):
        self.data, self.whole, self.error = (
            torch.zeros(1, 8, 8, 8, dtype=torch.uint8),
            whole,
            error or OSError("no space left"),
        )

    def set_data(self, tensor):
        pass

    def save(self, path):
        path.write_text("half", encoding="utf-8")
        self.whole -= 1
        if self.whole < 0:
            raise self.error


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
    expected = module.predict_step(data.whole("predict", 2), 0).rows[0]
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
    monkeypatch.setattr(data, "restore", lambda *_: Breaking(0))
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


# Classes that overlap: a folder for each subject.

OVERLAP = torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.bool)


@pytest.fixture
def overlapping(module, monkeypatch):
    """The second class lies in the first."""
    monkeypatch.setattr(module, "contract", Contract(classes=("liver", "tumour / cyst"), overlapping=True))
    own = module.predict_step

    def predict_step(batch, batch_idx):
        return Prediction(own(batch, batch_idx).rows, OVERLAP[None])

    monkeypatch.setattr(module, "predict_step", predict_step)
    return module


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


MASKS = ["segmentations/liver.nii.gz", "segmentations/tumour _ cyst.nii.gz"]


def test_classes_that_overlap_become_masks_and_a_picture_of_them(overlapping, data, make_trainer, tmp_path, capsys):
    predict(PredictionWriter(tmp_path), overlapping, data, make_trainer)
    expected = [f"case {n}/{name}" for n in range(4) for name in ["combined_labels.nii.gz", *MASKS]]
    assert files(tmp_path) == [*expected, "labels.json"]
    overlapping.eval()
    rows = overlapping.predict_step(data.whole("predict", 3), 0).rows[0]
    liver, tumour = (torch.load(tmp_path / "case 3" / name) for name in MASKS)
    assert torch.equal(liver, (rows > 0).to(torch.uint8))
    assert torch.equal(tumour, (rows == 2).to(torch.uint8))
    assert torch.equal(torch.load(tmp_path / "case 3" / "combined_labels.nii.gz"), rows.to(torch.uint8))
    assert "measure the masks" in capsys.readouterr().out


def test_masks_that_are_there_are_replaced_only_when_that_is_said(
    overlapping, data, make_trainer, tmp_path, monkeypatch
):
    scan, there = tmp_path / "case 1" / "ct.nii.gz", tmp_path / "case 1" / MASKS[0]
    there.parent.mkdir(parents=True)
    for path in (scan, there):
        path.write_text("mine", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(overlapping, "predict_step", lambda *_: pytest.fail("computed"))
        with pytest.raises(ValueError, match=r"case 1/segmentations.*--overwrite"):
            predict(PredictionWriter(tmp_path), overlapping, data, make_trainer)
        (there.parent / "spleen.nii.gz").write_text("drawn by hand", encoding="utf-8")
        with pytest.raises(ValueError, match=r"spleen.nii.gz is a mask of no class of this run"):
            predict(PredictionWriter(tmp_path, overwrite=True), overlapping, data, make_trainer)
        (there.parent / "spleen.nii.gz").unlink()
    assert files(tmp_path) == ["case 1/ct.nii.gz", f"case 1/{MASKS[0]}"]
    predict(PredictionWriter(tmp_path, overwrite=True), overlapping, data, make_trainer)
    assert torch.load(there).shape == (8, 8, 8)
    assert scan.read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("whole", [0, 1, 2])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_a_failed_write_leaves_no_half_folder_and_the_former_masks(whole, error, tmp_path):
    with pytest.raises(type(error)):
        write_masks(tmp_path / "new", Breaking(whole, error), OVERLAP[:1], ["liver", "tumour"])
    assert not (tmp_path / "new").exists()
    former = tmp_path / "old" / MASKS[0]
    former.parent.mkdir(parents=True)
    former.write_text("former", encoding="utf-8")
    with pytest.raises(type(error)):
        write_masks(tmp_path / "old", Breaking(whole, error), OVERLAP[:1], ["liver", "tumour"])
    assert files(tmp_path) == [f"old/{MASKS[0]}"]
    assert former.read_text(encoding="utf-8") == "former"


@pytest.mark.parametrize("killed_before_the_new_came", [True, False])
def test_what_a_killed_run_left_is_settled_by_the_next(killed_before_the_new_came, tmp_path):
    former, partial = tmp_path / ".replaced-segmentations", tmp_path / ".partial-segmentations"
    for folder in (former, partial, *([] if killed_before_the_new_came else [tmp_path / "segmentations"])):
        folder.mkdir()
        (folder / "liver.nii.gz").write_text(folder.name, encoding="utf-8")
    with pytest.raises(OSError, match="no space left"):
        write_masks(tmp_path, Breaking(0), OVERLAP[:1], ["liver", "tumour"])
    assert files(tmp_path) == ["segmentations/liver.nii.gz"]
    kept = ".replaced-segmentations" if killed_before_the_new_came else "segmentations"
    assert (tmp_path / "segmentations" / "liver.nii.gz").read_text(encoding="utf-8") == kept


def test_two_classes_of_one_file_name_are_refused(overlapping, data, make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(overlapping, "contract", Contract(classes=("a/b", "A:B"), overlapping=True))
    with pytest.raises(ValueError, match=r"several classes would be written to .*a_b\.nii\.gz"):
        predict(PredictionWriter(tmp_path), overlapping, data, make_trainer)
