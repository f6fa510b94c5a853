import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_atlas.contract import Contract
from lightning_atlas.data import Manifest, ScanFolder, Targets, write_manifest
from lightning_atlas.data.cases import Case, Split


def case(name: str, split: Split = "train", **told: Any) -> Case:
    return Case(name, split, Path(f"{name}.nii.gz"), **told)


def table(text):
    path = Path("table.csv")
    path.write_text(text, encoding="utf-8")
    return path


def test_classes_are_found_by_name_and_an_empty_cell_is_unknown():
    targets = Targets("class", ["healthy", "ill"], table("subject,age,target\na,5,ill\nb,6,healthy\nc,7,\n"))
    found = targets.of([case("a"), case("b", "test"), case("c")])
    assert {name: value.tolist() for name, value in found.items()} == {"a": 1, "b": 0, "c": -1}
    assert found["a"].dtype == torch.int64
    assert targets.scale(list(found.values())) is None


def test_values_and_labels_have_a_column_each():
    path = table("subject;age;nodule;effusion\na;60;1;no\nb;;0;\nc;80;yes;1.0\n")
    values = Targets("values", ["age"], path)
    found = values.of([case("a"), case("b"), case("c")])
    assert values.scale(list(found.values())) == ((70.0, 10.0),)
    assert math.isnan(found["b"].item())
    labels = Targets("labels", ["nodule", "effusion"], path).of([case("a"), case("c")])
    assert [value.tolist() for value in labels.values()] == [[1.0, 0.0], [1.0, 1.0]]


def test_small_values_keep_their_scale_and_equal_ones_have_no_spread():
    targets = Targets("values", ["flow", "age"])
    scans = [torch.tensor([flow, 61.7]) for flow in (1.2e-7, 3.4e-7, 5.0e-7)] * 300
    found = targets.scale(scans)
    assert found is not None
    assert found[0] == pytest.approx((3.2e-7, 1.5578e-7), rel=1e-4)
    assert found[1][1] == 0.0


def test_a_line_may_be_a_patients_and_scans_to_predict_on_need_none():
    targets = Targets("values", ["age"], table("patient,age\np,60\n"))
    found = targets.of([case("a", patient="p"), case("b", patient="p"), case("new", "predict")])
    assert found["a"].item() == found["b"].item() == 60.0
    assert found["new"].isnan().all()
    gone = replace(targets, table=Path("gone.csv"))
    assert gone.of([case("new", "predict")])["new"].isnan().all()


def test_a_dataset_or_the_source_may_say_it():
    whole = Targets("class", ["abdomen", "chest"], datasets={"x": "chest", "y": "abdomen"})
    found = whole.of([case("a", dataset="x"), case("b", dataset="y")])
    assert [found["a"].item(), found["b"].item()] == [1, 0]
    assert Targets("class", ["one", "two"]).of([case("a", target=1)])["a"].item() == 1
    assert Targets("values", ["age"]).of([case("a", target=2.5)])["a"].tolist() == [2.5]
    named = Targets("values", ["age", "kg"]).of([case("a", target={"kg": 70, "age": "61"})])
    assert named["a"].tolist() == [61.0, 70.0]
    assert Targets("class", ["healthy", "ill"], column="state").of([case("a", target={"state": "ill"})])["a"] == 1


@pytest.mark.parametrize(
    ("targets", "text", "message"),
    [
        (("class", ["healthy", "ill"]), "subject,target\na,il\n", "a: the class is 'il'.*did you mean 'ill'"),
        (("class", ["healthy", "ill"]), "subject,target\na,7\n", "none of the names; classes are healthy, ill"),
        (("class", ["healthy", "ill"]), "subject,targt\na,ill\n", "no column 'target'; did you mean 'targt'"),
        (("class", ["healthy", "ill"]), "name,target\na,ill\n", "no column 'subject'"),
        (("class", ["healthy", "ill"]), "subject,target\nb,ill\n", "1 of 1 scans have no target: a; add a line"),
        (("class", ["healthy", "ill"]), "subject,target\na,ill\na,ill\n", "line 3: subject 'a' stands there twice"),
        (("labels", ["nodule"]), "subject,nodule\na,2\n", "nodule is '2'; expected 1, 0 or nothing"),
        (("values", ["age"]), "subject,age\na,old\n", "age is 'old'; expected a number or nothing"),
        (("values", ["age"]), "subject,age\na,inf\n", "age is 'inf'"),
    ],
)
def test_a_fault_in_the_table_is_one_clear_error(targets, text, message):
    with pytest.raises(ValueError, match=message) as told:
        Targets(targets[0], targets[1], table(text)).of([case("a")])
    assert str(told.value).count("\n") < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "class", "names": ["one"]}, "two names at least, found one"),
        ({"kind": "values", "names": []}, "each once"),
        ({"kind": "values", "names": ["a", "a"]}, "each once"),
        ({"kind": "values", "names": ["a"], "table": Path("t.csv"), "datasets": {"x": {"a": 1.0}}}, "not both"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Targets(**arguments)


def test_mirroring_is_refused_where_a_target_has_a_side():
    mirrored = Contract(mirrored_axes=("i",))
    with pytest.raises(ValueError, match="mirror no axis"):
        Targets("labels", ["effusion_left", "effusion_right"]).stated(mirrored)
    stated = Targets("values", ["age"]).stated(mirrored)
    assert (stated.classes, stated.predicts) == (("age",), "values")


def test_no_training_scan_with_a_value_is_refused():
    with pytest.raises(ValueError, match="no training scan has age"):
        Targets("values", ["age"]).scale([torch.tensor([math.nan])])


def test_manifests_carry_named_targets(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").touch()
    csv = tmp_path / "list.csv"
    csv.write_text("subject,split,image,target:state,target:age\na,train,a.nii.gz,ill,60\nb,test,b.nii.gz,,\n")
    cases = Manifest(csv).cases()
    assert Targets("class", ["healthy", "ill"], column="state").of(cases)["a"].item() == 1
    assert Targets("values", ["age"]).of([cases[0]])["a"].tolist() == [60.0]
    for kind in ("json", "csv"):
        write_manifest(tmp_path / f"again.{kind}", cases)
        assert [each.target for each in Manifest(tmp_path / f"again.{kind}").cases()] == [each.target for each in cases]


def test_scans_without_labels_can_be_learned_from(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(10):
        (tmp_path / "images" / f"{number}.nii.gz").touch()
    assert {each.split for each in ScanFolder(tmp_path / "images").cases()} == {"predict"}
    splits = [each.split for each in ScanFolder(tmp_path / "images", unlabelled="train").cases()]
    assert [splits.count(split) for split in ("train", "val", "test")] == [6, 2, 2]
