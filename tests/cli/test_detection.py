"""Boxes through the command line: scans with labelled lesions, found, written and handed on."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lightning_atlas.cli import main
from lightning_atlas.intake.exported import build, public_spec
from lightning_atlas.networks import RetinaDetector

DETECTOR = json.dumps(
    {
        "class_path": "RetinaDetector",
        "init_args": {
            "network": {"class_path": "UNet", "init_args": {"features": [4, 8, 12]}},
            "features": 8,
            "levels": [1, 2],
            "anchors": [[6, 6, 6]],
        },
    }
)
SMALL = (
    "--data.source.images=scans",
    "--data.source.labels=labels",
    '--data.source.values={"nodule": 1}',
    "--data.patches.size=[24, 24, 24]",
    "--data.patches.per_epoch=40",
    "--data.batch_size=2",
    "--data.preprocess=[]",
    "--data.augment=[]",
    "--trainer.max_epochs=5",
    "--trainer.num_sanity_val_steps=0",
    "--model.optimizer.lr=0.01",
)
OBLIQUE = np.array([[0.0, -1.5, 0, 40], [1.5, 0, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])


@pytest.fixture
def scans(tmp_path):
    """Ten scans with a bright cube of six voxels each; where, is returned in voxels."""
    places = {}
    for folder in ("scans", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(10):
        random = np.random.default_rng(number)
        image, label = random.normal(0, 0.1, (32, 32, 24)).astype(np.float32), np.zeros((32, 32, 24), np.uint8)
        start = random.integers(2, (24, 24, 16))
        inside = tuple(slice(low, low + 6) for low in start)
        image[inside] += 1
        label[inside] = 1
        nib.save(nib.Nifti1Image(image, OBLIQUE), tmp_path / "scans" / f"s{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, OBLIQUE), tmp_path / "labels" / f"s{number}.nii.gz")
        places[f"s{number}"] = start
    return places


def rows(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_lesions_are_learned_scored_predicted_and_exported(scans, capsys):
    options = [*SMALL, f"--model.network={DETECTOR}", "--model.task.window.patch=[24, 24, 24]"]
    assert main(["fit", "target/my_scans", "task/detection", *options]) == 0
    told = capsys.readouterr().out
    assert "published" in told
    assert "a box about each piece" in told
    (run,) = Path("runs").glob("*/*")
    (nodule, last) = rows(run / "scores.csv")
    assert (nodule["name"], last["name"]) == ("nodule", "all")
    assert float(last["froc"]) >= 0.5
    assert (run / "overlay.png").is_file()

    Path("labels").rename("moved")  # elsewhere nobody has drawn anything
    assert main(["predict", str(run), "--input", "scans", "--output", "found"]) == 0
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path("found").glob("*.json")}
    assert sorted(found) == sorted(scans)
    near = 0
    for subject, start in scans.items():
        centre = OBLIQUE[:3, :3] @ (start + 2.5) + OBLIQUE[:3, 3]  # of six voxels whose first has number `start`
        best = found[subject]["boxes"][0]
        near += np.linalg.norm(np.array(best["centre_mm"]) - centre) < 4
    assert near >= 7

    assert main(["export", str(run), "--output", "handed"]) == 0
    assert "boxes around 1 kinds" in Path("handed/README.md").read_text(encoding="utf-8")
    assert main(["predict", "--weights", "handed", "--input", "scans", "--output", "again"]) == 0
    again = json.loads(Path("again/s3.json").read_text(encoding="utf-8"))
    assert [box["class"] for box in again["boxes"]] == [box["class"] for box in found["s3"]["boxes"]]
    assert again["boxes"][0]["centre_mm"] == pytest.approx(found["s3"]["boxes"][0]["centre_mm"], abs=0.01)
    capsys.readouterr()
    assert main(["inspect", "handed"]) == 0
    assert "RetinaDetector" in capsys.readouterr().out
    assert main(["export", str(run), "--output", "bundle", "--bundle"]) == 2
    assert "predicts boxes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_segmentation_network_starts_a_detector_with_the_starter_weights(scans, capsys):
    options = [*SMALL, "--trainer.max_steps=1", "--model.task.window.patch=[24, 24, 24]"]
    assert main(["fit", "target/my_scans", "task/detection", "start/starter", *options]) == 0
    told = capsys.readouterr().out
    assert "weights from starter_abdomen_ct" in told
    assert "neck" in told


def test_boxes_for_another_task_are_one_clear_error(scans, capsys):
    options = [*SMALL, "--data.boxes=LabelBoxes", "--model.network.features=[4, 8]", "--trainer.max_steps=1"]
    assert main(["fit", "target/my_scans", *options]) == 2
    told = capsys.readouterr().err
    assert "task.class_path: Detection" in told
    assert len(told.strip().split("\n")) <= 5  # a bar of progress writes over its own line


def test_a_detector_with_parts_of_its_own_is_built_from_what_an_export_says():
    selection = {"class_path": "lightning_atlas.networks.detection.suppression.BoxSelection", "init_args": {"most": 7}}
    network = {"class_path": "lightning_atlas.UNet", "init_args": {"features": [4, 8, 12]}}
    spec = public_spec(
        {
            "class_path": "lightning_atlas.RetinaDetector",
            "init_args": {"network": network, "features": 8, "selection": selection},
        }
    )
    built = build(spec, 3)
    assert isinstance(built, RetinaDetector)
    assert built.classes == 3
    assert built.selection.most == 7
    for foreign in ("subprocess.Popen", "lightning_atlas.cli.main"):
        spec["init_args"]["selection"] = {"class_path": foreign, "init_args": {}}
        with pytest.raises(ValueError, match="other code is not run"):
            build(spec)
