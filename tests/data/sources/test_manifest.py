import json
from pathlib import Path

import pytest

from lightning_atlas.data.cases import Case, DrawnOn, Mark
from lightning_atlas.data.slab import Slab
from lightning_atlas.data.sources.manifest import Manifest
from lightning_atlas.data.sources.write_manifest import write_manifest
from lightning_atlas.data.variation import Variation


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def written(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return Manifest(path)


def every_kind(folder):
    """Cases that between them use every field and differ from their dataset in each setting."""
    touch(folder, "ä b.nii.gz", "t1.nii", "t2.nii", "l.nii.gz", "m.nii.gz", "s.seg.nrrd", "d.nii", "x.png", "s/109.png")
    clinic = {"dataset": "clinic", "modality": "CT", "vocabulary": "amos", "values": {"liver": 1, "spleen": 2}}
    mask = Mark(folder / "m.nii.gz")
    slab = Slab((0.8, 0.8, float("nan")), planes=5, offset=-32768.0)
    drawn = DrawnOn(planes=(1, 4), mask=folder / "d.nii", axis="i", names=("liver",))
    label = folder / "l.nii.gz"
    return [
        Case("1", "train", folder / "ä b.nii.gz", label, **clinic, ignore_value=255),
        Case("2", "val", folder / "t1.nii", label, **clinic, ignore_value=255, drawn_on=(drawn, DrawnOn(every=5))),
        Case("3", "train", folder / "t2.nii", label, **clinic, drawn=("liver",), patient="p", masks={"Tumor ": mask}),
        Case("4", "test", {"T1": folder / "t1.nii", "T2": folder / "t2.nii"}, label, {"bone; flat": 7}, dataset="other",
             drawn=("bone; flat",), drawn_on=(DrawnOn(labelled=True),)),
        Case("5", "train", {"T1": folder / "t1.nii"}, masks={"a:b": Mark(folder / "s.seg.nrrd", 3, 1)}, dataset="other",
             drawn=()),
        Case("6", "predict", folder / "x.png", dataset="clinic", patient="06"),
        Case("7", "train", folder / "x.png", dataset="clinic", modality="CT", target=2),
        Case("8", "train", folder / "x.png", dataset="other", target=0.5, boxes=((0.0, 0.5, 0.0, 9.0, 9.0, 1.0, 2.0),)),
        Case("9", "train", folder / "s/109.png", dataset="other", slab=slab, boxes=((0.0, 0.0, 2.0, 9.0, 9.0, 3.0),)),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["all.json", "all.csv"])
def test_what_was_written_reads_back_the_same(tmp_path, name):
    cases = every_kind(tmp_path / "data")
    write_manifest(tmp_path / name, cases)
    assert Manifest(tmp_path / name).cases() == cases


def test_a_dataset_without_a_name_reads_back_the_same(tmp_path):
    touch(tmp_path, "a.nii")
    cases = [Case("a", "train", tmp_path / "a.nii", tmp_path / "a.nii", {"liver": 3}, "CT")]
    write_manifest(tmp_path / "m.json", cases)
    assert Manifest(tmp_path / "m.json").cases() == cases


def test_a_manifest_can_be_moved_with_its_files_and_has_a_line_a_subject(tmp_path):
    (tmp_path / "here").mkdir()
    cases = every_kind(tmp_path / "here")
    write_manifest(tmp_path / "here/m.json", cases)
    (tmp_path / "here").rename(tmp_path / "there")
    assert Manifest(tmp_path / "there/m.json").cases()[0].image == tmp_path / "there/ä b.nii.gz"
    lines = (tmp_path / "there/m.json").read_text(encoding="utf-8").splitlines()
    assert sum('"subject"' in line for line in lines) == len(cases)


def test_settings_of_a_dataset_hold_for_its_subjects_unless_they_say_otherwise(tmp_path):
    touch(tmp_path, "a.nii", "l.nii")
    told = {"image": "a.nii", "label": "l.nii"}
    datasets = {"d": {"modality": "MR", "values": {"liver": 4}, "drawn_on": {"every": 3}, "ignore_value": 9}}
    subjects = [{"subject": 1, **told}, {"subject": "b", **told, "modality": None, "values": {"x": 1}, "drawn_on": []}]
    first, second = written(tmp_path / "m.json", {"datasets": datasets, "subjects": subjects}).cases()
    assert (first.subject, first.split, first.dataset, first.modality) == ("1", "train", "d", "MR")
    assert (first.values, first.drawn_on, first.ignore_value) == ({"liver": 4}, (DrawnOn(every=3),), 9)
    assert (second.modality, second.values, second.drawn_on) == (None, {"x": 1}, ())


def test_a_table_of_a_spreadsheet_that_writes_semicolons_is_read(tmp_path):
    touch(tmp_path, "a.nii", "b.nii", "m.nii")
    text = 'subject;image:T1;image:T2;mask:Liver ;drawn_planes;drawn\n007;a.nii;b.nii;m.nii;"1;5";Liver\n\n'
    (tmp_path / "t.csv").write_text(text.replace(";Liver\n", ';"[""Liver ""]"\n'), encoding="utf-8-sig")
    (case,) = Manifest(tmp_path / "t.csv").cases()
    assert (case.subject, case.channels) == ("007", {"T1": tmp_path / "a.nii", "T2": tmp_path / "b.nii"})
    assert (case.masks, case.drawn) == ({"Liver ": Mark(tmp_path / "m.nii")}, ("Liver ",))
    assert case.drawn_on == (DrawnOn(planes=(1, 5)),)


def test_all_missing_files_are_told_at_once_with_their_subjects(tmp_path):
    subjects = [{"subject": name, "image": f"{name}.nii", "masks": {"m": "m.nii"}} for name in "ab"]
    with pytest.raises(ValueError, match="subject 'a': there is no file") as error:
        written(tmp_path / "m.json", {"subjects": subjects}).cases()
    assert len(str(error.value).splitlines()) == 4


def subject(**told):
    return {"subjects": [{"subject": "a", "image": "a.nii", **told}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (subject(lable="l.nii"), "subject 'a': unknown 'lable'; did you mean 'label'?"),
        ({"subject": []}, "unknown 'subject'; did you mean 'subjects'?"),
        ({"datasets": {"d": {"value": {}}}, "subjects": []}, "dataset 'd': unknown 'value'; did you mean 'values'?"),
        ({"datasets": {"one": {}, "two": {}}, **subject()}, "says no dataset, and there are 'one', 'two'"),
        ({"datasets": {"clinic": {}}, **subject(dataset="clinc")}, "unknown 'clinc'; did you mean 'clinic'?"),
        ({"subjects": [{"image": "a.nii"}]}, "entry 1 of subjects has no subject"),
        (subject(split="training"), "split 'training' is none of train"),
        (subject(drawn_on=[{"plane": [1]}]), "unknown 'plane'; did you mean 'planes'?"),
        (subject(drawn_on=[{"axis": "k"}]), "subject 'a': drawn_on says nowhere"),
        (subject(drawn_on=[{"every": 2, "axis": "z"}]), "axis is 'z'; axes are i"),
        (subject(masks={"liver": {"file": "m.nii", "value": True}}), "value is True"),
        (subject(label="l.nii", values={"liver": 0}), "'liver' has the value 0; values are whole numbers from 1"),
        (subject(label="l.nii", values={"liver": 1, "spleen": 1}), "'liver' and 'spleen' both have the value 1"),
        (subject(boxes=[[0, 0, 0, 5, 0, 1]]), "a box is"),
        (subject(slab={}), "slab, spacing_mm is None; write it like"),
        (subject(slab={"spacing_mm": [1, 1]}), "it has three sides of a voxel"),
        (subject(slab={"spacing_mm": [1, 1, "?"]}), r"spacing_mm is '\?'"),
        (subject(slab={"spacing_mm": [1, 1, 5]}), "has no number of its plane at the end of its name"),
        (subject(slab={"spacing_mm": [1, 1, 5]}, image={"T1": "1.nii"}), "the image is one file"),
        (subject(slab={"spacing_mm": [1, 1, 5], "plane": 9}), "slab: unknown 'plane'; did you mean 'planes'"),
        (subject(slab={"spacing_mm": [1, 1, 5], "planes": 4}, image="1.png"), "an odd number of planes"),
        (subject(target="two"), "target is 'two'"),
        (subject(subject="../a"), "cannot be a subject's name"),
        ({"subjects": subject()["subjects"] * 2}, "two subjects are called 'a': .*subject 'a' and .*subject 'a'"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path, document, message):
    touch(tmp_path, "a.nii", "l.nii", "m.nii")
    with pytest.raises(ValueError, match=message) as error:
        written(tmp_path / "m.json", document).cases()
    assert "m.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"subjects": [', "line 1, is no JSON"),
        ('{"subjects": [], "subjects": []}', "the key 'subjects' is twice"),
        ('{"subjects": [{"subject": "a", "image": "a", "target": NaN}]}', "NaN is no number"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "write it like"),
    ],
)
def test_what_is_no_table_of_subjects_is_told(tmp_path, text, message):
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Manifest(tmp_path / "m.json").cases()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,image\na,a.nii,b", "line 2, has 3 cells for 2 columns"),
        ("subject,image,image\na,a.nii,", "the column 'image' twice"),
        ("subject,image,boxes\na,a.nii,1 2", "line 2, boxes is '1 2', which cannot be read"),
        ("subject,image", "no line below its first"),
        ("subject,picture\na,b", "unknown 'picture'"),
    ],
)
def test_a_fault_of_a_csv_table_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Manifest(tmp_path / "t.csv").cases()


def test_a_simulated_subject_cannot_be_written(tmp_path):
    case = Case("s", "train", Path("a.nii"), variation=Variation(0, 1, 1.0, "CT"))
    with pytest.raises(ValueError, match="s is simulated"):
        write_manifest(tmp_path / "m.json", [case])
