import shutil

import pytest

from lightning_atlas.data import ScanFolder, ScanTable
from lightning_atlas.data.cases import DrawnOn
from lightning_atlas.data.embedded import HERE

VALUES = {"cord": 60}


def populate(folder, names, ending=".nii.gz", origin="spine_mr.nii.gz"):
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(HERE / origin, folder / f"{name}{ending}")
    return folder


def test_scans_and_labels_are_paired_by_name_also_with_nnunets_suffix(tmp_path):
    images = populate(tmp_path / "scans of café", ["b_0000", "a_0000"])
    labels = populate(tmp_path / "labels", ["a", "b"])
    cases = ScanFolder(images, labels, VALUES, val_share=0.0, test_share=0.0).cases()
    assert [(case.subject, case.channels, case.label) for case in cases] == [
        (name, {"image": images / f"{name}_0000.nii.gz"}, labels / f"{name}.nii.gz") for name in "ab"
    ]


def test_files_with_channel_numbers_are_one_scan_unless_a_label_has_the_whole_name(tmp_path):
    images = populate(tmp_path / "images", ["a_0000", "a_0001", "b_0003"])
    labels = populate(tmp_path / "labels", ["a", "b_0003"])
    first, second = ScanFolder(images, labels, VALUES, val_share=0.0, test_share=0.0).cases()
    assert (first.subject, first.channels) == ("a", {str(n): images / f"a_000{n}.nii.gz" for n in (0, 1)})
    assert (second.subject, second.image) == ("b_0003", images / "b_0003.nii.gz")


def test_a_missing_partner_is_named(tmp_path):
    images, labels = populate(tmp_path / "images", ["a", "b"]), populate(tmp_path / "labels", ["a", "c"])
    with pytest.raises(ValueError, match=r"b\.nii\.gz has no label called b(.|\n)*c\.nii\.gz has no image"):
        ScanFolder(images, labels, VALUES).cases()


def test_splits_are_seeded_disjoint_and_of_the_size_asked(tmp_path):
    names = [f"s{number:02d}" for number in range(10)]
    images, labels = populate(tmp_path / "images", names), populate(tmp_path / "labels", names)
    splits = [[case.split for case in ScanFolder(images, labels, VALUES, seed=seed).cases()] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert sorted(splits[0]) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2


def test_without_labels_every_scan_is_to_be_predicted(tmp_path):
    images = populate(tmp_path / "images", ["a"], ".nrrd", "chest_ct.nrrd")
    populate(tmp_path / "images" / "folder inside", ["x"])
    (tmp_path / "images" / "notes.txt").write_text("no scan", encoding="utf-8")
    assert [(case.subject, case.split, case.label) for case in ScanFolder(images).cases()] == [("a", "predict", None)]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "there is no folder"),
        (lambda folder: folder.mkdir(), "no scans in"),
        (
            lambda folder: [populate(folder, ["a"]), shutil.copy(HERE / "chest_ct.nrrd", folder / "a.nrrd")],
            "two scans are",
        ),
    ],
)
def test_a_folder_that_is_not_one_of_scans_is_told(tmp_path, prepare, message):
    prepare(tmp_path / "images")
    with pytest.raises(ValueError, match=message):
        ScanFolder(tmp_path / "images").cases()


def test_labels_without_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"values: \{liver: 1, spleen: 2\}"):
        ScanFolder(tmp_path, tmp_path)


def test_a_table_tells_all_of_a_case(tmp_path):
    populate(tmp_path / "deep", ["a"])
    lines = [
        "subject,split,image,label,drawn,drawn_planes",
        "eins,train,deep/a.nii.gz,deep/a.nii.gz,cord,3;5",
        "zwei,predict,deep/a.nii.gz,,,",
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    first, second = ScanTable(tmp_path / "table.csv", VALUES, "MR", ignore_value=255).cases()
    assert (first.subject, first.split, first.drawn, first.drawn_on) == (
        *("eins", "train", ("cord",)),
        (DrawnOn(planes=(3, 5)),),
    )
    assert (first.image, first.modality, first.ignore_value) == (tmp_path / "deep/a.nii.gz", "MR", 255)
    assert (second.label, second.drawn, second.drawn_on) == (None, None, ())


def test_a_table_may_have_columns_of_a_manifest(tmp_path):
    populate(tmp_path / "deep", ["a"])
    head, scan = "subject,split,image,label,dataset,patient", "deep/a.nii.gz"
    lines = [head, f"a1,train,{scan},{scan},clinic,a", f"b,val,{scan},,,"]
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    first, second = ScanTable(tmp_path / "table.csv", VALUES, "MR").cases()
    assert (first.dataset, first.patient, first.values, first.modality) == ("clinic", "a", VALUES, "MR")
    assert (second.dataset, second.patient, second.modality) == ("", None, "MR")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,image\na,b", "no column split"),
        ("subject,split,image\na,training,b", "line 2: split 'training' is none of train"),
        ("subject,split,image\na,train,b.nii", "line 2: there is no file"),
    ],
)
def test_a_table_with_a_fault_names_the_line(tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ScanTable(tmp_path / "table.csv", VALUES).cases()
