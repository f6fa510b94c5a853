import numpy as np
import pytest

from lightning_atlas.data import ScanLayout, Splits, Targets
from lightning_atlas.data.sources.layouts import read_layout


@pytest.fixture
def lidc(tmp_path):
    """Three patients; the second's nodules stand in both columns of the published division."""
    (tmp_path / "nodule").mkdir()
    (tmp_path / "info").mkdir()
    modes = {"lidc1_1": 5, "lidc2_1": 1, "lidc2_2": 2, "lidc3_1": 3}
    for name in modes:
        np.savez(
            tmp_path / "nodule" / f"{name}.npz", voxel=np.zeros((2, 2, 2), np.uint8), answer1=np.ones((2, 2, 2), bool)
        )
    rows = [f"{name},LIDC-IDRI-000{name[4]},{mode},subset1" for name, mode in modes.items()]
    table = "\n".join(["index,uid,malignancy_mode,subset", *rows])
    (tmp_path / "info" / "lidc_nodule_info_new_with_subset.csv").write_text(table, encoding="utf-8")
    division = ",train,test\n0,lidc1_1.npz,lidc2_2.npz\n1,lidc2_1.npz,lidc2_2.npz\n2,lidc3_1.npz,\n"
    (tmp_path / "train_test_split.csv").write_text(division, encoding="utf-8")
    return tmp_path


def test_nodules_are_divided_by_patient_and_have_their_malignancy(lidc):
    result = read_layout(lidc)
    assert [case.target for case in result.cases] == [1, 0, 0, -1]
    assert {case.patient for case in result.cases} == {"LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003"}
    assert {case.split for case in result.cases} == {"train"}
    assert any("2 nodules are benign, 1 malign, 1 neither" in note for note in result.notes)
    targets = Targets("class", ["benign", "malign"]).of(result.cases)
    assert [int(targets[case.subject]) for case in result.cases] == [1, 0, 0, -1]


def test_folds_are_those_of_the_table_of_patients(lidc):
    table = "uid,subset\nLIDC-IDRI-0001,subset1\nLIDC-IDRI-0002,subset2\nLIDC-IDRI-0003,subset5\n"
    (lidc / "info" / "lidc_patient_info_new_with_subset.csv").write_text(table, encoding="utf-8")
    cases = Splits().assign(ScanLayout(lidc, "lidc").cases(), fold=1)
    assert [case.split for case in cases] == ["train", "val", "val", "train"]


def test_the_published_division_is_there_and_its_leak_is_told(lidc):
    result = read_layout(lidc, "lidc_by_nodule")
    assert {case.subject: case.split for case in result.cases} == {
        "lidc1_1": "train",
        "lidc2_1": "train",
        "lidc2_2": "test",
        "lidc3_1": "train",
    }
    assert any("leaks: 1 of the 1 patients" in note for note in result.notes)
    splits = [case.split for case in Splits(val_share=0.0).assign(result.cases)]
    assert splits == ["train", "train", "test", "train"]


def test_the_leak_is_counted_among_the_crops_that_are_here(lidc):
    (lidc / "nodule" / "lidc2_1.npz").unlink()
    division = ",train,test\n0,lidc1_1.npz,lidc2_2.npz\n1,lidc2_1.npz,lidc8_1.npz\n"
    (lidc / "train_test_split.csv").write_text(division, encoding="utf-8")
    assert any("leaks: 0 of the 1 patients" in note for note in read_layout(lidc, "lidc_by_nodule").notes)


def test_a_crop_without_an_opinion_and_a_table_without_a_column_are_told(lidc):
    np.savez(lidc / "nodule" / "lidc9_1.npz", voxel=np.zeros((2, 2, 2), np.uint8))
    assert "has no line in" in str(read_layout(lidc).defects[0])
    (lidc / "train_test_split.csv").write_text(",train\n0,lidc1_1.npz\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column 'test'"):
        read_layout(lidc, "lidc_by_nodule")
