import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from batch_boxes import boxes_of
from torch.utils.data import DataLoader
from torchio.transforms import (
    RandomAffine,
    RandomElasticDeformation,
    RandomFlip,
    Resample,
    RescaleIntensity,
    ToCanonical,
)

from lightning_atlas.data import (
    BatchAugmentation,
    LabelBoxes,
    Manifest,
    Patches,
    RandomQuarterTurns,
    ScanDataModule,
    SimulatedCohort,
    SourceBoxes,
    Targets,
)
from lightning_atlas.data.augmentation.intensity import Intensity
from lightning_atlas.data.augmentation.spatial import Mirroring, Rotation, Scaling, Spatial
from lightning_atlas.types import Batch, Boxes

BLOCKS = {1: [(2, 3, 1, 9, 8, 6), (14, 3, 2, 16, 6, 5)], 2: [(3, 12, 8, 8, 20, 12)]}
SHAPE = (22, 24, 14)
LEFT: Any = ("L",)  # TorchIO says numbers, and takes names
RAS = np.diag([2.0, 1.5, 3.0, 1.0])


def written(folder, subjects=("a", "b"), affine=RAS, boxes=False, shapes=None, values=None):
    """Write scans whose structures are blocks; return their manifest."""
    told = []
    for number, name in enumerate(subjects):
        label = np.zeros((shapes or [SHAPE] * 9)[number], np.uint8)
        for value, blocks in BLOCKS.items():
            for i0, j0, k0, i1, j1, k1 in blocks:
                label[i0:i1, j0:j1, k0:k1] = value
        split = ("train", "val", "predict")[number]
        told.append({"subject": name, "image": f"{name}.nii.gz", "split": split})
        nib.save(nib.Nifti1Image(label.astype(np.float32) * 100, affine), folder / f"{name}.nii.gz")
        if boxes:
            told[-1]["boxes"] = [[*each, value - 1] for value, blocks in BLOCKS.items() for each in blocks]
        elif split != "predict":
            told[-1]["label"] = f"{name}_label.nii.gz"
            nib.save(nib.Nifti1Image(label, affine), folder / f"{name}_label.nii.gz")
    named = {"values": values or {"liver": 1, "spleen": 2}}
    document = {"datasets": {"d": {} if boxes else named}, "subjects": told}
    (folder / "m.json").write_text(json.dumps(document), encoding="utf-8")
    return Manifest(folder / "m.json")


def module(source, **changes):
    settings = {
        "boxes": LabelBoxes(),
        "preprocess": [ToCanonical()],
        "patches": Patches((12, 12, 8), per_epoch=16, foreground=0.9),
    }
    return ScanDataModule(source, **(settings | changes))


def batches(loader) -> list[Batch]:
    assert isinstance(loader, DataLoader)  # where no scan is to validate on, it is a list
    return list(loader)


def in_patches(data, count) -> list[Boxes]:
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    return [dataset[n]["boxes"] for n in range(count)]


def rows(boxes):
    numbers = boxes.classes.tolist()
    return sorted([*each, number] for each, number in zip(boxes.corners.tolist(), numbers, strict=True))


BOXES = sorted([*map(float, each), value - 1] for value, blocks in BLOCKS.items() for each in blocks)


def test_pieces_and_classes_have_boxes_on_the_scans_grid(tmp_path):
    data = module(written(tmp_path))
    assert (data.contract.predicts, data.contract.classes) == ("boxes", ("liver", "spleen"))
    assert not data.contract.overlapping
    data.prepare_data()
    data.setup()
    (batch,) = batches(data.val_dataloader())
    assert rows(boxes_of(batch)[0]) == BOXES
    assert boxes_of(batch)[0].classes.dtype == torch.int64
    (whole,) = batches(module(written(tmp_path), boxes=LabelBoxes("class")).val_dataloader())
    assert rows(boxes_of(whole)[0]) == [[2, 3, 1, 16, 8, 6, 0], [3, 12, 8, 8, 20, 12, 1]]
    large = module(written(tmp_path), boxes=LabelBoxes(least_voxels=2 * 3 * 3 + 1)).whole("val", 0)
    assert rows(boxes_of(large)[0]) == [each for each in BOXES if each[0] != 14]
    assert "a box about each piece" in data.describe()


def test_boxes_are_looked_for_once(tmp_path, monkeypatch):
    data = module(written(tmp_path))
    data.setup("fit")
    monkeypatch.setattr(LabelBoxes, "_found", None)
    again = module(written(tmp_path))
    again.setup("fit")
    assert rows(boxes_of(again.whole("val", 0))[0]) == BOXES


AUGMENTS = {
    "none": [],
    "flips": [RandomFlip((0, 1, 2)), RandomFlip(LEFT)],
    "turns": [RandomQuarterTurns(("i", "j"), p=0.8), RandomFlip(2)],
    "batch": BatchAugmentation(
        Spatial(Rotation(probability=0.0), Scaling(probability=0.0), Mirroring(probability=0.5)),
        Intensity(),
    ),
}


@pytest.mark.parametrize("how", AUGMENTS)
def test_a_box_in_a_patch_is_about_the_voxels_there(tmp_path, how):
    from lightning_atlas.data.boxes import clipped

    augment = AUGMENTS[how]
    data = module(written(tmp_path), augment=augment, boxes=LabelBoxes(visible=0.0), seed=3)
    data.setup("fit")
    seen = 0
    for batch in data.train_dataloader():
        if how == "batch":
            batch = augment(batch, (12, 12, 8), [])
            batch["boxes"] = [clipped(each, (12, 12, 8)) for each in boxes_of(batch)]
        for label, states, boxes in zip(batch["label"], batch["states"], boxes_of(batch), strict=True):
            inside = (states == 1)[label.long()]
            covered = torch.zeros_like(inside)
            for corners, number in zip(boxes.corners.tolist(), boxes.classes.tolist(), strict=True):
                i0, j0, k0, i1, j1, k1 = map(int, corners)
                assert inside[i0:i1, j0:j1, k0:k1, number].all()
                covered[i0:i1, j0:j1, k0:k1, number] = True
                seen += 1
            assert torch.equal(covered, inside)  # no structure without its box, and each box is filled
    assert seen > 12


def test_a_zoomed_and_turned_patch_keeps_its_structures_in_their_boxes(tmp_path):
    augment = BatchAugmentation(Spatial(Rotation(probability=1.0), Scaling(probability=1.0)), Intensity())
    data = module(written(tmp_path), augment=augment, boxes=LabelBoxes(visible=0.0))
    data.setup("fit")
    for batch in data.train_dataloader():
        batch = augment(batch, (12, 12, 8), [])
        for label, states, boxes in zip(batch["label"], batch["states"], boxes_of(batch), strict=True):
            for place in torch.nonzero((states == 1)[label.long()]):
                *voxel, number = place.tolist()
                middle = torch.tensor(voxel) + 0.5
                ours = boxes.corners[boxes.classes == number]
                assert ((ours[:, :3] - 0.75 <= middle) & (middle <= ours[:, 3:] + 0.75)).all(1).any()


def test_sides_change_places_where_a_patch_is_mirrored(tmp_path):
    source = written(tmp_path, values={"kidney_left": 1, "kidney_right": 2})
    mirror = Spatial(Rotation(probability=0.0), Scaling(probability=0.0), Mirroring(("i",), 1.0))
    augment = BatchAugmentation(mirror, swap_sides=True)
    data = module(source, augment=augment)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    moved = augment(batch, (12, 12, 8), [(0, 1)])
    for before, after in zip(boxes_of(batch), boxes_of(moved), strict=True):
        assert after.classes.tolist() == (1 - before.classes).tolist()
    with pytest.raises(ValueError, match="mirrors, but kidney_left and kidney_right"):
        _ = module(source, augment=[RandomFlip(0)]).contract


def test_boxes_of_a_source_go_through_orientation_and_spacing(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 9], [0, 0, -3, 2], [0, 0, 0, 1]])
    source = written(tmp_path, affine=affine, boxes=True)
    data = module(source, boxes=SourceBoxes(["x", "y"]), preprocess=[ToCanonical()])
    data.setup()
    assert data.contract.classes == ("x", "y")
    batch = data.whole("val", 0)
    # file i runs to the front, j to the left, k downwards
    expected = sorted([24 - j1, i0, 14 - k1, 24 - j0, i1, 14 - k0, n] for i0, j0, k0, i1, j1, k1, n in BOXES)
    assert rows(boxes_of(batch)[0]) == expected
    half = module(source, boxes=SourceBoxes(["x", "y"]), preprocess=[ToCanonical(), Resample((1.0, 0.75, 1.5))])
    finer = half.whole("val", 0)
    assert torch.allclose(boxes_of(finer)[0].corners, 2 * boxes_of(batch)[0].corners, atol=1e-4)
    for corners in boxes_of(finer)[0].corners:
        i0, j0, k0, i1, j1, k1 = (int(each) for each in corners.round())
        assert float(finer["image"][0, 0, i0 + 1 : i1 - 1, j0 + 1 : j1 - 1, k0 + 1 : k1 - 1].min()) > 90


def test_planar_boxes_reach_over_the_whole_depth(tmp_path):
    data = module(written(tmp_path, boxes=True), boxes=SourceBoxes(["x", "y"], planar=True))
    assert boxes_of(data.whole("val", 0))[0].corners[:, [2, 5]].unique(dim=0).tolist() == [[0, 14]]


@pytest.mark.parametrize("depth", [1, 3])
def test_planar_boxes_reach_over_the_depth_of_a_patch_however_thin(tmp_path, depth):
    boxes = SourceBoxes(["x", "y"], planar=True)
    patches = Patches((22, 24, depth), per_epoch=4, foreground=1.0)
    for found in in_patches(module(written(tmp_path, boxes=True), boxes=boxes, patches=patches), 4):
        assert [[*each[:2], *each[3:5], each[6]] for each in rows(found)] == [
            [*each[:2], *each[3:5], each[6]] for each in BOXES
        ]
        assert found.corners[:, [2, 5]].unique(dim=0).tolist() == [[0, depth]]


def test_a_class_whose_boxes_no_patch_shows_is_named():
    low = torch.zeros(3, 3)
    sides = torch.tensor([[40.0, 8, 8], [4, 8, 8], [30, 10, 10]])
    boxes = Boxes(torch.cat([low + 5, low + 5 + sides], dim=1), torch.tensor([1, 0, 1]))
    (told,) = SourceBoxes(["x", "spine"]).too_large([boxes, boxes], ["x", "spine"], (7, 16, 16))
    assert "spine is not learned: patches of 7 x 16 x 16 voxels show less than 0.25 of each" in told
    assert "the least of 40 x 8 x 8;" in told
    for size, visible in (((10, 8, 8), 0.25), ((7, 16, 16), 0.2)):  # a quarter of 40, and more than a fifth of 30
        assert LabelBoxes(visible=visible).too_large([boxes], ["x", "spine"], size) == []
    planar = SourceBoxes(["x", "spine"], planar=True)
    assert planar.too_large([boxes], ["x", "spine"], (40, 8, 1)) == []
    assert planar.too_large([], ["x", "spine"], (4, 4, 4)) == []


def test_images_of_unlike_sizes_keep_their_boxes_on_their_voxels(tmp_path):
    from lightning_atlas.data.patches import WholeDataset
    from lightning_atlas.data.sampling import collate

    data = module(written(tmp_path, shapes=[SHAPE, (30, 25, 17)]))
    data.setup()
    samples = [WholeDataset(data.opened[split])[0] for split in ("train", "val")]
    batch = collate(samples)
    assert batch["image"].shape[2:] == (30, 25, 17)
    for image, boxes in zip(batch["image"], boxes_of(batch), strict=True):
        for corners, number in zip(boxes.corners.tolist(), boxes.classes.tolist(), strict=True):
            i0, j0, k0, i1, j1, k1 = map(int, corners)
            assert (image[0, i0:i1, j0:j1, k0:k1] == 100 * (number + 1)).all()


def test_patches_are_centred_on_small_pieces_as_often_as_on_large_ones(tmp_path):
    data = module(written(tmp_path), patches=Patches((4, 4, 4), 60, foreground=1.0), boxes=LabelBoxes(visible=0.9))
    low = [tuple(boxes.corners.flatten().tolist()) for boxes in in_patches(data, 60)]
    small = (1.0, 1.0, 1.0, 3.0, 4.0, 4.0)  # its middle is voxel 2 of the patch
    assert 8 < low.count(small) < 24  # the half of the patches is about the class that has two pieces
    rare = module(written(tmp_path), patches=Patches((4, 4, 4), 40, 1.0, "rare"))
    numbers = [boxes.classes[0].item() for boxes in in_patches(rare, 40)]
    assert 10 < numbers.count(0) < 30


def test_scans_to_predict_on_have_no_boxes(tmp_path):
    data = module(written(tmp_path, ("a", "b", "c")))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert "boxes" not in batch


def test_workers_and_resumed_runs_see_the_same_boxes(tmp_path):
    first = module(written(tmp_path), augment=[RandomAffine(degrees=20)])
    first.setup("fit")
    alone = [rows(each) for batch in first.train_dataloader() for each in boxes_of(batch)]
    beside = module(written(tmp_path), augment=[RandomAffine(degrees=20)], num_workers=1)
    beside.setup("fit")
    assert alone == [rows(each) for batch in beside.train_dataloader() for each in boxes_of(batch)]


def test_faults_are_told(tmp_path):
    labels, given = written(tmp_path), SourceBoxes(["x", "y"])
    with pytest.raises(ValueError, match="the source says no box of any scan"):
        _ = module(labels, boxes=given).contract
    source = written(tmp_path, boxes=True)
    with pytest.raises(ValueError, match="a has a box of class 1; names has 1"):
        _ = module(source, boxes=SourceBoxes(["x"])).contract
    with pytest.raises(ValueError, match=r"set data\.init_args\.classes: null"):
        _ = module(source, boxes=given, classes={"x": ["x"]}).contract
    with pytest.raises(ValueError, match=r"targets .* and boxes"):
        _ = module(source, boxes=given, targets=Targets("values", ["age"])).contract
    with pytest.raises(ValueError, match=r"RandomElasticDeformation .* boxes cannot follow"):
        _ = module(source, boxes=given, augment=[RandomElasticDeformation()]).contract
    with pytest.raises(ValueError, match="visible"):
        SourceBoxes(["x"], visible=2.0)
    with pytest.raises(ValueError, match="names"):
        SourceBoxes(["x", "x"])


def test_scans_of_which_only_planes_were_drawn_are_refused():
    source = SimulatedCohort("spine_mr", 1, 0, 0, drawn_planes=[6, 13])
    data = module(source, classes={"cord": ["spinal_cord"]}, preprocess=[ToCanonical(), RescaleIntensity((-1, 1))])
    with pytest.raises(ValueError, match="nobody says whether it is in class 0"):
        data.setup("fit")


def test_a_simulated_cohort_has_boxes_about_its_structures():
    data = module(SimulatedCohort("spine_mr", 1, 1, 0), classes={"cord": ["spinal_cord"]}, boxes=LabelBoxes("class"))
    data.setup("fit")
    batch = data.whole("val", 0)
    inside = (batch["states"][0] == 1)[batch["label"][0].long()][..., 0]
    places = torch.nonzero(inside)
    assert boxes_of(batch)[0].corners[0].tolist() == [*places.amin(0).tolist(), *(places.amax(0) + 1).tolist()]
    assert Path(data.opened["val"][0].folder).is_dir()


def test_a_class_that_no_patch_shows_is_told_once_by_those_that_are_trained_on(tmp_path, capsys):
    small = {"patches": Patches((3, 3, 3), per_epoch=4)}
    data = module(written(tmp_path), **small)
    data.prepare_data()
    data.setup()
    told = [line for line in capsys.readouterr().out.splitlines() if "is not learned" in line]
    assert len(told) == 1
    assert told[0].startswith("note: spleen is not learned: patches of 3 x 3 x 3 voxels show less than 0.25 of each of")
    assert "the least of 5 x 8 x 4;" in told[0]
    assert not [each for each in in_patches(module(written(tmp_path), **small), 4) if 1 in each.classes]
