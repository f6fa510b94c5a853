import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from batch_boxes import boxes_of
from torchio.transforms import Resample, ToCanonical

from lightning_atlas.data import Manifest, Patches, ScanDataModule, WorldBoxes
from lightning_atlas.data.cases import Case

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm"
AFFINE = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -20], [0, 0, 3, 100], [0, 0, 0, 1]])
BALL_MM, DIAMETER_MM = np.array([10.0, -5.0, 130.0]), 12.0


def source(folder, names=("1.2.3", "1.2.4")):
    """Write scans (stored to the front and to the left) with a ball at a place in millimetres (RAS)."""
    i, j, k = np.meshgrid(*(np.arange(side) for side in (30, 32, 24)), indexing="ij")
    places = np.einsum("ab,b...->a...", AFFINE[:3, :3], np.stack([i, j, k])) + AFFINE[:3, 3, None, None, None]
    ball = (np.linalg.norm(places - BALL_MM[:, None, None, None], axis=0) <= DIAMETER_MM / 2).astype(np.float32)
    told = []
    for name, split in zip(names, ("train", "val"), strict=True):
        nib.save(nib.Nifti1Image(ball, AFFINE), folder / f"{name}.nii.gz")
        told.append({"subject": name, "image": f"{name}.nii.gz", "split": split})
    (folder / "m.json").write_text(json.dumps({"subjects": told}), encoding="utf-8")
    return Manifest(folder / "m.json")


def module(source, boxes, **changes):
    settings = {"preprocess": [ToCanonical()], "patches": Patches((8, 8, 8), per_epoch=8, foreground=1.0)}
    return ScanDataModule(source, boxes=boxes, **(settings | changes))


def table(text):
    path = Path("annotations.csv")
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("preprocess", [[ToCanonical()], [ToCanonical(), Resample((1.0, 1.0, 1.0))]])
def test_a_box_lies_about_the_ball(tmp_path, preprocess):
    path = table(f"{HEADER}\n1.2.4,-10,5,130,12\n")  # LPS, as ITK has it
    batch = module(source(tmp_path), WorldBoxes(path, ["nodule"]), preprocess=preprocess).whole("val", 0)
    (corners,) = boxes_of(batch)[0].corners.numpy()
    affine = batch["affine"][0].numpy()
    middle = affine[:3, :3] @ ((corners[:3] + corners[3:]) / 2 - 0.5) + affine[:3, 3]
    assert np.allclose(middle, BALL_MM, atol=1e-3)
    assert np.allclose((corners[3:] - corners[:3]) * batch["spacing_mm"][0].numpy(), DIAMETER_MM, atol=1e-3)
    bright = np.argwhere(batch["image"][0, 0].numpy() > 0.5)
    assert (bright >= corners[:3] - 1).all()
    assert (bright + 1 <= corners[3:] + 1).all()


def test_a_line_without_a_name_is_about_no_scan(tmp_path):
    boxes = WorldBoxes(table(f"{HEADER}\n,1,2,3,4\n1.2.4,-10,5,130,12\n"), ["nodule"])
    with pytest.raises(ValueError, match=r"has lines about .*1\.2\.4, but no scan is called so: other"):
        boxes.check([Case("other", "train", tmp_path / "other.nii.gz")])


def test_words_classes_and_axes_of_the_table():
    path = table("patient;x_mm;y_mm;z_mm;diameter;class\np;1;2;3;4;solid\np;5;6;7;8;cyst\n")
    boxes = WorldBoxes(path, ["cyst", "solid"], axes="RAS")
    assert boxes.lines == {"p": [(1, 2, 3, 4, 1), (5, 6, 7, 8, 0)]}
    assert boxes.description == "boxes of cyst, solid by annotations.csv"


def test_scans_without_a_line_have_no_boxes(tmp_path):
    path = table(f"{HEADER}\n1.2.3,-10,5,130,12\n")
    data = module(source(tmp_path), WorldBoxes(path, ["nodule"]))
    assert data.contract.classes == ("nodule",)
    assert len(boxes_of(data.whole("val", 0))[0].corners) == 0
    data.setup("fit")
    assert all(len(boxes.corners) for batch in data.train_dataloader() for boxes in batch["boxes"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seriesuid,coordX,coordY,diameter_mm\na,1,2,3", "wanted are subject, coordX, coordY, coordZ, diameter_mm"),
        (f"{HEADER}\n1.2.3,1,2,x,3", "line 2: coordZ is 'x'; expected millimetres"),
        (f"{HEADER}\n1.2.3,nan,2,3,6", "line 2: coordX is 'nan'; expected millimetres"),
        (f"{HEADER}\n1.2.3,1,2,3,inf", "line 2: diameter_mm is 'inf'; expected millimetres"),
        (f"{HEADER}\n1.2.3,1,2,3,0", "line 2: diameter_mm is 0; expected above 0 mm"),
        (f"{HEADER}\na,1,2,3,4", r"lines about a, but no scan is called so: 1\.2\.3"),
    ],
)
def test_faults_are_told(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        _ = module(source(tmp_path), WorldBoxes(table(text), ["nodule"])).contract
    with pytest.raises(ValueError, match=r"line 2: the class is ''"):
        _ = WorldBoxes(table(f"{HEADER}\n1.2.3,1,2,3,4"), ["a", "b"]).lines
