import json
from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from lightning_atlas.callbacks import BoxWriter
from lightning_atlas.callbacks.prediction_boxes import as_text, in_world
from lightning_atlas.types import Boxes


def boxes(*rows):
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 8)
    return Boxes(table[:, :6], table[:, 6].long(), table[:, 7])


def oblique(spacing=(0.7, 1.1, 5.0), backwards=(1, -1, 1)):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (10, 25, -40), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.multiply(spacing, backwards))
    affine[:3, 3] = (12.0, -30.0, 7.0)
    return affine


@pytest.mark.parametrize(
    "affine", [np.eye(4), np.diag([-2.0, 1.0, 3.0, 1.0]), oblique()], ids=["unit", "LAS", "oblique"]
)
def test_a_box_in_the_world_holds_the_outer_faces_of_its_voxels(affine):
    low, high = (2, 3, 1), (6, 4, 5)
    told = in_world(boxes([*low, *high, 1, 0.25]), affine, ("liver", "spleen"))
    (box,) = told["boxes"]
    assert (box["class"], box["score"], told["space"]) == ("spleen", 0.25, "RAS")
    # The faces of a voxel lie half a voxel beside its middle, which is what an affine speaks of.
    ends = [
        affine[:3, :3] @ (np.array(corner) - 0.5) + affine[:3, 3] for corner in product(*zip(low, high, strict=True))
    ]
    axes, centre, size = np.array(told["axes"]), np.array(box["centre_mm"]), np.array(box["size_mm"])
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-5)
    told_ends = [centre + (np.array(signs) * size / 2) @ axes for signs in product((-1, 1), repeat=3)]
    assert np.array(told_ends) == pytest.approx(np.array(ends), abs=2e-3)
    assert box["low_mm"] == pytest.approx(np.min(ends, 0), abs=2e-3)
    assert box["high_mm"] == pytest.approx(np.max(ends, 0), abs=2e-3)


def test_a_file_is_json_with_a_line_for_each_box():
    told = {
        "subject": "a",
        **in_world(boxes([0, 0, 0, 1, 1, 1, 0, 0.5], [0, 0, 0, 2, 2, 2, 0, 0.4]), np.eye(4), ("a",)),
    }
    assert json.loads(as_text(told)) == told
    assert sum("centre_mm" in line for line in as_text(told).splitlines()) == 2
    none = {"subject": "a", **in_world(boxes(), np.eye(4), ("a",))}
    assert json.loads(as_text(none)) == none


@pytest.fixture
def predict(module, data, make_trainer, monkeypatch):
    def run(output, overwrite=False, names=None):
        found = boxes([1, 1, 1, 4, 4, 4, 0, 0.9], [4, 4, 2, 7, 7, 5, 1, 0.5])
        monkeypatch.setattr(module, "predict_step", lambda batch, batch_idx: [found for _ in batch["subject"]])
        data.names = names or data.names
        trainer = make_trainer(BoxWriter(output, overwrite), enable_progress_bar=False)
        trainer.predict(module, data, return_predictions=False)

    return run


def test_each_scan_has_a_file(predict, tmp_path, capsys):
    predict(tmp_path / "out é")
    written = sorted(path.name for path in (tmp_path / "out é").iterdir())
    assert written == [f"case {number}.json" for number in range(4)]
    told = json.loads((tmp_path / "out é" / "case 2.json").read_text(encoding="utf-8"))
    assert told["subject"] == "case 2"
    # Voxels of 2 x 2 x 5 mm: from the outer face of voxel 1 to that of voxel 3.
    assert told["boxes"][0]["low_mm"] == [1.0, 1.0, 2.5]
    assert told["boxes"][0]["high_mm"] == [7.0, 7.0, 17.5]
    assert [box["class"] for box in told["boxes"]] == ["liver", "spleen"]
    assert "the boxes of 4 scans" in capsys.readouterr().out


def test_what_is_there_is_replaced_only_when_that_is_said(predict, tmp_path):
    (tmp_path / "case 3.json").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"case 3\.json.*--overwrite"):
        predict(tmp_path)
    assert (tmp_path / "case 3.json").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "case 0.json").exists()
    predict(tmp_path, overwrite=True)
    assert json.loads((tmp_path / "case 3.json").read_text(encoding="utf-8"))["boxes"]
    with pytest.raises(ValueError, match="takes a folder"):
        predict(tmp_path / "case 3.json", overwrite=True)
    with pytest.raises(ValueError, match="several scans"):
        predict(tmp_path / "else", names=["A", "a"])
