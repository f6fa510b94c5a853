"""Which class occurs where, from label files with structures that only some scans have."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lightning_atlas.data import Classes, ScanDataModule, Splits
from lightning_atlas.data.cases import Case, Mark, Source
from lightning_atlas.data.holding import held_classes
from lightning_atlas.data.store import occurring as source

NAMES = {"liver": 1, "liver_tumor": 2, "kidney_left": 3, "kidney_right": 4}


def write(path: Path, values):
    voxels = np.zeros((6, 5, 4), np.int16)
    for place, value in enumerate(values):
        voxels[place] = value
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    return path


def case(folder: Path, name: str, values, **changes):
    image = write(folder / f"{name}.nii.gz", [len(name) + sum(values), *name.encode()[:4]])
    label = write(folder / f"{name}_seg.nii.gz", values)
    return Case(name, "train", image, label, NAMES, patient=name, **changes)


def test_a_class_is_held_where_one_of_its_parts_has_a_voxel(tmp_path):
    cases = [case(tmp_path, "a", [1, 2]), case(tmp_path, "b", [1, 4]), case(tmp_path, "c", [])]
    wanted = {"liver": ["liver", "liver_tumor"], "kidney": ["kidney_left", "kidney_right"]}
    assert held_classes(cases, wanted) == (
        ("liver", "kidney"),
        [frozenset({"liver"}), frozenset({"liver", "kidney"}), frozenset()],
    )
    overlapping = Classes({"liver": ["liver"], "liver_tumor": ["liver_tumor"]}, exclusive=False)
    assert held_classes(cases, overlapping)[1] == [{"liver", "liver_tumor"}, {"liver"}, frozenset()]


def test_what_nobody_drew_is_not_held_and_an_empty_mask_holds_nothing(tmp_path):
    drawn = case(tmp_path, "a", [1, 3], drawn=("liver",))
    empty, full = write(tmp_path / "empty.nii.gz", []), write(tmp_path / "full.nii.gz", [7])
    masks = {"spleen": Mark(empty), "stomach": Mark(full)}
    apart = Case("b", "train", tmp_path / "a.nii.gz", masks=masks)
    names, held = held_classes([drawn, apart], None)
    assert set(names) == {*NAMES, "spleen", "stomach"}
    assert held == [{"liver"}, {"stomach"}]


def test_a_label_file_is_read_once_ever_and_again_when_it_changed(tmp_path, monkeypatch):
    cases, read = [case(tmp_path, "a", [1]), case(tmp_path, "b", [3])], []
    reader = source.read_labels
    monkeypatch.setattr(source, "read_labels", lambda path: (read.append(path.name), reader(path))[1])
    first = held_classes(cases, None)
    assert held_classes(cases, None) == first
    assert sorted(read) == ["a_seg.nii.gz", "b_seg.nii.gz"]
    write(tmp_path / "b_seg.nii.gz", [3, 4])
    assert held_classes(cases, None)[1] == [{"liver"}, {"kidney_left", "kidney_right"}]
    assert len(read) == 3


def test_negative_values_count_as_values(tmp_path):
    marked = case(tmp_path, "a", [1, -1], ignore_value=-1)
    assert source.occurring([marked.marks["liver"].path]) == {marked.marks["liver"].path: (frozenset({1, -1}),)}


class Listed(Source):
    def __init__(self, listed):
        self.listed = listed

    def cases(self):
        return self.listed

    @property
    def description(self):
        return "a test"


@pytest.mark.parametrize("seed", range(4))
def test_a_recipe_with_few_shots_trains_on_patients_who_have_its_classes(tmp_path, seed):
    rare = {3: [1, 3, 4], 7: [1, 2], 11: [1, 2]}
    cases = [case(tmp_path, f"p{n:02d}", rare.get(n, [1, 3])) for n in range(16)]
    splits = Splits(val_share=0.0, test_share=0.0, shots=2, shots_seed=seed)
    data = ScanDataModule(Listed(cases), splits=splits)
    chosen = {each.subject for each in data.cases}
    assert "p03" in chosen
    assert chosen & {"p07", "p11"}
    other = ScanDataModule(Listed(cases), {"liver": ["liver"]}, splits=splits)
    assert len(other.cases) == 2
