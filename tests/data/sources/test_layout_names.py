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
