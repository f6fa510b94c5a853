"""Layouts in which scan and label lie side by side in one folder, or case folders in two trees."""

import json

import numpy as np
import pytest
from SimpleITK import GetImageFromArray, WriteImage

from lightning_atlas.data.cases import Mark
from lightning_atlas.data.sources.layouts import LAYOUTS, read_layout


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def files(result):
    return {case.subject: (case.image.name, case.label and case.label.name) for case in result.cases}


@pytest.mark.parametrize("ending", ["_seg", "-label", "_segmentation", ".mask", " gt", "_labelmap"])
@pytest.mark.parametrize("scan", ["case{}", "case{}_ct", "case{}_0000"])
def test_scan_and_label_side_by_side_are_told_apart_by_what_stands_behind_the_name(tmp_path, scan, ending):
    touch(tmp_path, *(f"{name.format(n)}.nii.gz" for n in (1, 2) for name in (scan, "case{}" + ending)), ".hidden.nii")
    (tmp_path / "labels.json").write_text(json.dumps({"liver": 1}), encoding="utf-8")
    result = read_layout(tmp_path)
    assert f"the layout is taken to be flat: {LAYOUTS['flat'].holds}" in result.notes
    assert files(result) == {f"case{n}": (f"{scan.format(n)}.nii.gz", f"case{n}{ending}.nii.gz") for n in (1, 2)}
    assert [case.values for case in result.cases] == [{"liver": 1}] * 2
    assert not result.defects


def test_segments_beside_a_scan_of_the_same_name_are_read_by_name(tmp_path):
    touch(tmp_path, "a.nrrd")
    image = GetImageFromArray(np.eye(2, dtype=np.uint8)[None])
    image.SetMetaData("Segment0_ID", "Segment_1")
    image.SetMetaData("Segment0_Name", "liver")
    WriteImage(image, tmp_path / "a.seg.nrrd")
    (case,) = read_layout(tmp_path).cases
    assert (case.image, case.masks) == (tmp_path / "a.nrrd", {"liver": Mark(tmp_path / "a.seg.nrrd", 1)})


def test_what_lacks_its_other_half_is_a_defect_each(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "c_seg.nii.gz")
    result = read_layout(tmp_path)
    assert files(result) == {"a": ("a.nii.gz", "a_seg.nii.gz")}
    assert [(each.file.name, each.subject) for each in result.defects] == [("b.nii.gz", "b"), ("c_seg.nii.gz", "c")]


def test_two_labels_of_one_subject_are_refused_by_name(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "a-label.nii.gz")
    with pytest.raises(ValueError, match=r"a-label\.nii\.gz and a_seg\.nii\.gz would both be the label of a"):
        read_layout(tmp_path)


def test_scans_alone_are_of_no_layout(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    with pytest.raises(ValueError, match="is of no known layout"):
        read_layout(tmp_path)


@pytest.mark.parametrize("roots", [("image_only", "mask_only"), ("TrainTr", "TrainLabels")])
def test_scans_and_masks_in_two_trees_are_put_together_by_their_case(tmp_path, roots):
    scans, masks = roots
    for case in ("BDMAP_00000001", "BDMAP_00000002"):
        touch(tmp_path, f"{scans}/{case}/ct.nii.gz", f"{masks}/{case}/segmentations/liver.nii.gz")
    touch(tmp_path, f"{masks}/BDMAP_00000002/segmentations/spleen.nii.gz", f"{scans}/BDMAP_00000003/ct.nii.gz")
    touch(tmp_path, f"{masks}/BDMAP_00000004/segmentations/liver.nii.gz")
    result = read_layout(tmp_path)
    assert result.layout == "abdomenatlas"
    assert f"scans are those in {scans}, masks those in {masks}" in result.notes
    found = {case.subject: (case.split, case.image, sorted(case.masks)) for case in result.cases}
    assert found == {
        f"BDMAP_0000000{n}": (split, tmp_path / f"{scans}/BDMAP_0000000{n}/ct.nii.gz", names)
        for n, split, names in ((1, "train", ["liver"]), (2, "train", ["liver", "spleen"]), (3, "predict", []))
    }
    assert result.cases[0].masks["liver"].file == tmp_path / f"{masks}/BDMAP_00000001/segmentations/liver.nii.gz"
    assert [each.subject for each in result.defects] == ["BDMAP_00000004"]
