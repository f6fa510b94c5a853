import json

import pytest

from lightning_atlas.data.sources.layouts import read_layout


@pytest.mark.parametrize(
    ("usual", "other", "listed_"),
    [
        ("kidney_left", "Left Kidney", True),
        ("gallbladder", "gall-bladder", True),
        ("kidneys", "kidney", True),
        ("pancreas", "pancrease", True),
        ("kidney_left", "kidney_right", False),
        ("rib_left_1", "rib_left_2", False),
        ("vertebrae_T1", "vertebrae_L1", False),
        ("ileum", "ilium", False),
        ("lung_upper_lobe", "lung_lower_lobe", False),
    ],
)
def test_what_is_spelled_alike_is_told_from_what_is_another_structure(tmp_path, usual, other, listed_):
    for subject, name in (("a", usual), ("b", usual), ("c", other)):
        (tmp_path / subject / "segmentations").mkdir(parents=True)
        (tmp_path / subject / "ct.nii.gz").touch()
        (tmp_path / subject / f"segmentations/{name}.nii.gz").touch()
    notes = [note for note in read_layout(tmp_path).notes if "aliases" in note]
    assert notes == ([f"{other!r} (1 cases) may be {usual!r} (2 cases); if so, add "
                      f"aliases: {{{json.dumps(other)}: {usual}}}"] if listed_ else [])  # fmt: skip


@pytest.mark.parametrize(
    ("scan", "label", "subjects"),
    [
        ("img/img{:04}", "label/label{:04}", ["0001", "0002"]),  # BTCV
        ("volume-{}", "segmentation-{}", ["1", "2"]),  # LiTS
        ("verse{:03}", "verse{:03}_seg", ["verse001", "verse002"]),  # VerSe
    ],
)
def test_published_names_of_scans_and_labels_find_each_other(tmp_path, scan, label, subjects):
    for number in (1, 2):
        for name in (scan, label):
            file = tmp_path / f"{name.format(number)}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    result = read_layout(tmp_path, values={"liver": 1})
    assert [case.subject for case in result.cases] == subjects
    assert not result.defects
    for number, case in enumerate(result.cases, start=1):
        assert case.image == tmp_path / f"{scan.format(number)}.nii.gz"
        assert case.label == tmp_path / f"{label.format(number)}.nii.gz"
