import json
from pathlib import Path

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image
from SimpleITK import GetImageFromArray, WriteImage

from lightning_atlas.data.cases import DrawnOn, Mark
from lightning_atlas.data.sources.folder import ScanLayout
from lightning_atlas.data.sources.layouts import LAYOUTS, read_layout


def volume(path, dtype: type = np.int16, values=1000, channels=()):
    """A volume of 8 x 8 x 8 random voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(0, values, (8, 8, 8, *channels)).astype(dtype)
    if path.name.endswith((".nii", ".nii.gz")):
        Nifti1Image(array, np.eye(4)).to_filename(path)
    else:
        WriteImage(GetImageFromArray(array), path)
    return path


def label(path):
    return volume(path, np.uint8, 3)


def segmentation(path, segments, layers=1):
    """A `.seg.nrrd` of 3D Slicer: name -> value or (value, layer)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = GetImageFromArray(np.zeros((4, 4, 4, layers), np.uint8), isVector=layers > 1)
    for number, (name, place) in enumerate(segments.items()):
        value, layer = place if isinstance(place, tuple) else (place, 0)
        for key, told in {"ID": f"Segment_{number}", "Name": name, "LabelValue": value, "Layer": layer}.items():
            image.SetMetaData(f"Segment{number}_{key}", str(told))
    WriteImage(image, path)
    return path


def table(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")


def splits(result):
    return {case.subject: case.split for case in result.cases}


def case_of(result, subject):
    return next(case for case in result.cases if case.subject == subject)


def abdomenatlas(root):
    for name in ("BDMAP_00000001", "BDMAP_00000002"):
        volume(root / name / "ct.nii.gz")
        label(root / name / "segmentations/liver.nii.gz")
        label(root / name / "combined_labels.nii.gz")
    label(root / "BDMAP_00000001/segmentations/gall_bladder.nii.gz")


def totalsegmentator(root):
    for name, scan in (("s0011", "ct"), ("s0012", "mri"), ("s0013", "ct")):
        volume(root / name / f"{scan}.nii.gz")
        label(root / name / "segmentations/rib_left_1.nii.gz")
    head = "\ufeffimage_id;age;gender;institute;study_type;split"
    table(root / "meta.csv", f"{head}\ns0011;70;m;A;ct thorax;val\ns0012;50;f;B;mr;test\ns0099;;;;;train\n")


def nnunet(root):
    labels = {"background": 0, "whole_tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    table(root / "dataset.json", {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels, "numTraining": 2})
    for subject in ("BRATS_0001", "BRATS_0002"):
        for channel in ("0000", "0001"):
            volume(root / f"imagesTr/{subject}_{channel}.nii.gz")
        label(root / f"labelsTr/{subject}.nii.gz")
    for channel in ("0000", "0001"):
        volume(root / f"imagesTs/BRATS_0003_{channel}.nii.gz")


def decathlon(root):
    training = [{"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"} for n in (1, 2)]
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    modality = {"0": "FLAIR", "1": "T1w"}
    listed = {"training": training, "test": ["./imagesTs/liver_3.nii.gz"]}
    table(root / "dataset.json", {"modality": modality, "labels": labels, **listed})
    for name in ("imagesTr/liver_1", "imagesTr/liver_2", "imagesTs/liver_3", "imagesTr/._liver_1"):
        volume(root / f"{name}.nii.gz", channels=(2,))
    for n in (1, 2):
        label(root / f"labelsTr/liver_{n}.nii.gz")


def listed(root):
    entries = [{"id": f"case {n}", "image": f"scans/{n}.mha", "label": f"drawn/{n}.nii.gz"} for n in (1, 2)]
    table(root / "dataset.json", {"name": "mine", "labels": {"liver": 1, "spleen": 5}, "training": entries})
    for n in (1, 2):
        volume(root / f"scans/{n}.mha")
        label(root / f"drawn/{n}.nii.gz")


def bids(root):
    for scan in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-b/anat/sub-01_ses-b_T1w", "sub-02/anat/sub-02_T2w"):
        volume(root / f"{scan}.nii.gz")
    volume(root / "sub-02/anat/sub-02_T1w.nii.gz")
    derived = root / "derivatives/hand"
    label(derived / "sub-01/ses-a/anat/sub-01_ses-a_dseg.nii.gz")
    label(derived / "sub-01/ses-a/anat/sub-01_ses-a_desc-lesion_mask.nii.gz")
    label(derived / "sub-02/anat/sub-02_space-T1w_dseg.nii.gz")
    label(derived / "sub-02/anat/sub-02_space-MNI152_dseg.nii.gz")
    table(derived / "dseg.tsv", "index\tname\n0\tbackground\n1\tgrey matter\n2\twhite matter\n")


def pair(root):
    for name in ("a", "b"):
        volume(root / f"Scans/{name}_image.nii.gz")
        label(root / f"masks/{name}-label.nii.gz")
    table(root / "labels.json", {"liver": 1, "spleen": 2})


def slicer(root):
    """Folders that differ in the names, formats, order, layers and grids of what lies in them."""
    volume(root / "anna/Volume.nrrd")
    segmentation(root / "anna/Segmentation.seg.nrrd", {"liver": 1, "tumor": 2})
    volume(root / "bob/ct portal.nii.gz", np.float32)
    segmentation(root / "bob/my drawing.seg.nrrd", {"tumor": (1, 1), "liver": (1, 0), "Spleen": (2, 0)}, layers=2)
    volume(root / "carl/x.mha")
    segmentation(root / "carl/y.nrrd", {"Liver ": 3})  # saved without .seg
    volume(root / "dora/one.nii.gz")
    label(root / "dora/two.nii.gz")
    volume(root / "eve/one.nii.gz")
    volume(root / "eve/two.nii.gz", values=4)  # of the same type: told by its few values
    volume(root / "fred/scan.nii.gz")
    for folder in ("gina/series", "hans"):
        table(root / folder / "1.dcm", "\0" * 128 + "DICM")
        segmentation(root / folder.split("/")[0] / "drawn.seg.nrrd", {"liver": 1})
    (root / "notes").mkdir()


def manifest(root):
    volume(root / "a.nii.gz")
    table(root / "scans.csv", "subject,image\na,a.nii.gz\n")
    return root / "scans.csv"


BUILDERS = {each.__name__: each for each in (abdomenatlas, totalsegmentator, nnunet, decathlon, bids, pair, slicer,
                                             manifest)} | {"dataset.json": listed}  # fmt: skip


@pytest.fixture
def built(tmp_path):
    """Build a layout in a folder with a space, and read it without saying what it is."""

    def build(name):
        root = tmp_path / "my data"
        return root, read_layout(BUILDERS[name](root) or root)

    return build


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layout_is_guessed_and_said_and_its_files_exist(built, name):
    _, result = built(name)
    assert result.layout == name
    assert f"the layout is taken to be {name}: {LAYOUTS[name].holds}" in result.notes
    files = [
        file for case in result.cases for file in (*case.channels.values(), *(m.file for m in case.marks.values()))
    ]
    assert files
    assert all(file.exists() for file in files)


def test_abdomenatlas_has_a_mask_for_each_structure_that_is_there(built):
    root, result = built("abdomenatlas")
    assert splits(result) == {"BDMAP_00000001": "train", "BDMAP_00000002": "train"}
    first, second = result.cases
    assert first.image == root / "BDMAP_00000001/ct.nii.gz"
    masks = root / "BDMAP_00000001/segmentations"
    assert first.masks == {name: Mark(masks / f"{name}.nii.gz") for name in ("gall_bladder", "liver")}
    assert (list(second.masks), second.modality, second.dataset) == (["liver"], "CT", "my data")
    assert any("combined_labels.nii.gz of 2 cases are left alone" in note for note in result.notes)


def test_totalsegmentator_has_splits_and_modalities(built):
    _, result = built("totalsegmentator")
    assert splits(result) == {"s0011": "val", "s0012": "test", "s0013": "train"}
    assert [case.modality for case in result.cases] == ["CT", "MR", "CT"]
    assert any("no split in meta.csv and are taken to train: s0013" in note for note in result.notes)
    assert any("1 subjects of meta.csv have no folder: s0099" in note for note in result.notes)


def test_a_case_folder_without_a_scan_or_without_masks_is_told_apart(tmp_path):
    abdomenatlas(tmp_path)
    (tmp_path / "BDMAP_00000001/ct.nii.gz").unlink()
    volume(tmp_path / "BDMAP_00000003/ct.nii.gz")
    result = read_layout(tmp_path)
    assert splits(result) == {"BDMAP_00000002": "train", "BDMAP_00000003": "predict"}
    (defect,) = result.defects
    assert (defect.file, defect.subject) == (tmp_path / "BDMAP_00000001", "BDMAP_00000001")


def test_nnunet_has_channels_regions_and_an_ignored_value(built):
    root, result = built("nnunet")
    assert splits(result) == {"BRATS_0001": "train", "BRATS_0002": "train", "BRATS_0003": "predict"}
    case = result.cases[0]
    assert case.channels == {
        name: root / f"imagesTr/BRATS_0001_000{n}.nii.gz" for n, name in enumerate(("T1", "FLAIR"))
    }
    assert (case.values, case.ignore_value, case.modality) == (
        *({"whole_tumor_1": 1, "core_2": 2, "enhancing": 3}, 4, "MR"),
    )
    assert result.unions == {
        "whole_tumor": ("whole_tumor_1", "core_2", "enhancing"),
        "core": ("core_2", "enhancing"),
    }
    assert result.cases[2].label is None


def test_labels_beside_imagests_make_a_test_split_and_a_lonely_image_is_a_defect(tmp_path):
    nnunet(tmp_path)
    label(tmp_path / "labelsTs/BRATS_0003.nii.gz")
    (tmp_path / "labelsTr/BRATS_0002.nii.gz").unlink()
    result = read_layout(tmp_path)
    assert splits(result) == {"BRATS_0001": "train", "BRATS_0003": "test"}
    assert "imagesTr/BRATS_0002_0000.nii.gz has no label called BRATS_0002" in str(result.defects[0])
    with pytest.raises(ValueError, match="has no label called BRATS_0002"):
        ScanLayout(tmp_path).cases()


def test_decathlon_has_values_before_names_and_channels_in_one_file(built):
    root, result = built("decathlon")
    assert splits(result) == {"liver_1": "train", "liver_2": "train", "liver_3": "predict"}
    first = result.cases[0]
    assert (first.values, first.modality) == ({"liver": 1, "cancer": 2}, "MR")
    assert first.label == root / "labelsTr/liver_1.nii.gz"
    assert "each file holds 2 channels: FLAIR, T1w" in result.notes


@pytest.mark.parametrize("labels", [{"liver": 1, "spleen": 5}, {"0": "background", "1": "liver", "5": "spleen"}])
def test_a_list_of_files_is_read_with_either_order_of_names_and_values(tmp_path, labels):
    listed(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    table(tmp_path / "dataset.json", document | {"labels": labels})
    for path in (tmp_path, tmp_path / "dataset.json"):
        result = read_layout(path)
        assert splits(result) == {"case 1": "train", "case 2": "train"}
        assert result.cases[1].image == tmp_path / "scans/2.mha"
        assert result.cases[1].values == {"liver": 1, "spleen": 5}


def test_a_list_of_files_with_four_digits_in_their_names_is_not_nnunets(tmp_path):
    entries = [{"image": f"imagesTr/amos_000{n}.nii.gz", "label": f"labelsTr/amos_000{n}.nii.gz"} for n in (1, 2)]
    for entry in entries:
        volume(tmp_path / entry["image"])
        label(tmp_path / entry["label"])
    document = {"labels": {"0": "background", "1": "spleen"}, "training": entries[:1], "validation": entries[1:]}
    table(tmp_path / "dataset.json", document)
    result = read_layout(tmp_path)
    assert (result.layout, splits(result)) == ("decathlon", {"amos_0001": "train", "amos_0002": "val"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"1": "liver", "2": "liver"}}, "several values are called 'liver'"),
        ({"labels": {"liver": 1.5}}, "labels 'liver' is 1.5"),
        ({"labels": ["liver"]}, "labels is"),
        ({"training": [{"label": "a.nii.gz"}]}, "training 1 has no image, but label"),
        ({"training": [{"image": 3}]}, "training 1, image is 3"),
    ],
)
def test_a_fault_in_a_dataset_json_is_told_with_its_place(tmp_path, change, message):
    listed(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    table(tmp_path / "dataset.json", document | change)
    with pytest.raises(ValueError, match=message) as error:
        read_layout(tmp_path, "dataset.json")
    assert str(tmp_path / "dataset.json") in str(error.value)


def test_bids_takes_labels_by_entities_and_names_from_above(built):
    root, result = built("bids")
    assert splits(result) == {
        **{"sub-01_ses-a_T1w": "train", "sub-01_ses-b_T1w": "predict"},
        **{"sub-02_T1w": "train", "sub-02_T2w": "predict"},
    }
    assert [case.patient for case in result.cases] == ["sub-01", "sub-01", "sub-02", "sub-02"]
    case = case_of(result, "sub-01_ses-a_T1w")
    assert (case.values, case.modality) == ({"grey matter": 1, "white matter": 2}, "MR")
    assert case.masks == {
        "lesion": Mark(root / "derivatives/hand/sub-01/ses-a/anat/sub-01_ses-a_desc-lesion_mask.nii.gz")
    }
    assert any("space-MNI152_dseg.nii.gz is left out" in note for note in result.notes)


def test_a_label_that_fits_two_images_of_bids_is_a_defect(tmp_path):
    bids(tmp_path)
    label(tmp_path / "derivatives/hand/sub-02/anat/sub-02_dseg.nii.gz")
    (defect,) = read_layout(tmp_path).defects
    assert "fits several images: sub-02_T1w.nii.gz, sub-02_T2w.nii.gz; name it after one of them" in str(defect)


def test_two_folders_are_paired_though_their_names_say_what_they_are(built):
    root, result = built("pair")
    assert [(case.subject, case.image, case.label) for case in result.cases] == [
        (name, root / f"Scans/{name}_image.nii.gz", root / f"masks/{name}-label.nii.gz") for name in "ab"
    ]
    assert result.cases[0].values == {"liver": 1, "spleen": 2}


def test_values_without_names_are_asked_for_and_given(tmp_path):
    pair(tmp_path)
    (tmp_path / "labels.json").unlink()
    assert any("label maps of 2 cases have no names (a, b)" in note for note in read_layout(tmp_path).notes)
    assert read_layout(tmp_path, values={"liver": 3}).cases[0].values == {"liver": 3}
    assert ScanLayout(tmp_path, vocabulary="amos").cases()[0].values["liver"] == 6


def test_slicer_reads_segments_by_name_case_by_case(built):
    root, result = built("slicer")
    drawn = ("anna", "bob", "carl", "dora", "eve", "gina", "hans")
    assert splits(result) == {**dict.fromkeys(drawn, "train"), "fred": "predict"}
    file = root / "bob/my drawing.seg.nrrd"
    assert case_of(result, "anna").masks == {
        name: Mark(root / "anna/Segmentation.seg.nrrd", value) for name, value in (("liver", 1), ("tumor", 2))
    }
    assert case_of(result, "bob").masks == {
        "tumor": Mark(file, 1, 1),
        "liver": Mark(file, 1, 0),
        "Spleen": Mark(file, 2, 0),
    }
    assert case_of(result, "bob").image == root / "bob/ct portal.nii.gz"
    assert case_of(result, "carl").masks == {"Liver ": Mark(root / "carl/y.nrrd", 3)}
    assert [case_of(result, name).label for name in ("dora", "eve")] == [
        root / f"{name}/two.nii.gz" for name in ("dora", "eve")
    ]
    assert [case_of(result, name).image for name in ("gina", "hans")] == [root / "gina/series", root / "hans"]
    assert "notes is no case: it holds no image" in result.notes


def test_a_slicer_folder_that_cannot_be_told_apart_is_a_defect_and_the_others_are_read(tmp_path):
    slicer(tmp_path)
    volume(tmp_path / "anna/third.nrrd")
    (tmp_path / "carl/y.nrrd").write_bytes(b"NRRD0004\n")
    result = read_layout(tmp_path, "slicer")
    assert {"bob", "dora", "eve", "fred", "gina", "hans"} == set(splits(result))
    assert {defect.subject for defect in result.defects} == {"anna", "carl"}


def test_variants_of_a_name_are_listed_with_the_line_that_mends_them(built):
    root, result = built("slicer")
    line = 'aliases: {"Liver ": liver}'
    assert [note for note in result.notes if "aliases" in note] == [
        f"'Liver ' (1 cases) may be 'liver' (4 cases); if so, add {line}"
    ]
    renamed = read_layout(root, aliases={"Liver ": "liver"})
    assert list(case_of(renamed, "carl").masks) == ["liver"]
    assert not any("aliases" in note for note in renamed.notes)


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"livre": "liver"}, "no case has the name 'livre'; near are 'liver'"),
        ({"tumor": "liver"}, "anna two structures"),
    ],
)
def test_an_alias_that_names_nothing_or_makes_two_of_one_is_refused(tmp_path, aliases, message):
    slicer(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_layout(tmp_path, aliases=aliases)


def test_a_source_of_a_recipe_says_what_the_layout_does_not(tmp_path):
    slicer(tmp_path / "clinic")
    source = ScanLayout(tmp_path / "clinic", "slicer", "CT", {"Liver ": "liver"}, "totalsegmentator_v2",
                        [DrawnOn(labelled=True)])  # fmt: skip
    cases = source.cases()
    assert {(case.modality, case.vocabulary, case.dataset) for case in cases} == {
        ("CT", "totalsegmentator_v2", "clinic")
    }
    assert all(case.drawn_on == (DrawnOn(labelled=True),) for case in cases)


def test_what_fits_no_layout_or_two_is_told_with_what_was_seen(tmp_path):
    table(tmp_path / "notes.txt", "nothing")
    with pytest.raises(ValueError, match=r"no known layout: it holds notes\.txt; known are(.|\n)*abdomenatlas"):
        read_layout(tmp_path)
    abdomenatlas(tmp_path)
    slicer(tmp_path)
    with pytest.raises(
        ValueError, match=r"may be abdomenatlas and slicer: it holds BDMAP.*for example layout: abdomen"
    ):
        read_layout(tmp_path)
    with pytest.raises(ValueError, match="no layout 'nnunett'; did you mean 'nnunet'"):
        read_layout(tmp_path, "nnunett")
    with pytest.raises(ValueError, match="there is no folder"):
        read_layout(Path("missing"))
