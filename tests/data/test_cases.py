import pickle

import pytest

from lightning_atlas.data import Case, DrawnOn, Mark


@pytest.mark.parametrize("values", [{"head": 0}, {"head": 1, "tail": 1}])
def test_names_that_share_a_value_or_are_the_background_are_refused(values, tmp_path):
    with pytest.raises(ValueError, match="a value of its own above 0"):
        Case("one", "train", tmp_path, tmp_path, values)


@pytest.mark.parametrize("subject", ["", "../up", ".hidden", "a/b", "a\\b"])
def test_names_that_cannot_be_files_are_refused(subject, tmp_path):
    with pytest.raises(ValueError, match="cannot be a subject's name"):
        Case(subject, "train", tmp_path)


def test_marks_of_a_label_map_come_in_the_order_of_their_values(tmp_path):
    masks = {"cyst": Mark(tmp_path / "cyst.nii.gz")}
    case = Case("one", "train", tmp_path / "a", tmp_path / "b", {"tail": 9, "head": 4}, masks=masks)
    assert case.names == ("head", "tail", "cyst")
    assert case.marks["head"] == Mark(tmp_path / "b", 4)
    assert case.channels == {"image": tmp_path / "a"}


def test_a_mark_is_the_same_by_text_by_path_and_from_a_folder(tmp_path):
    by_path, by_text = Mark(tmp_path / "a.nii", 3), Mark(str(tmp_path / "a.nii"), 3)
    from_folder = Mark("a.nii", 3, folder=str(tmp_path))
    assert by_path == by_text == from_folder == Mark(tmp_path / "a.nii", 3, folder="elsewhere")
    assert len({by_path, by_text, from_folder}) == 1
    assert pickle.loads(pickle.dumps(from_folder)) == by_text
    assert by_text.file == from_folder.file == tmp_path / "a.nii"
    assert by_path != Mark(tmp_path / "a.nii", 3, layer=1)
    assert by_path != Mark(tmp_path / "a.nii", 2)


def test_a_name_in_a_label_map_and_in_a_mask_is_refused(tmp_path):
    with pytest.raises(ValueError, match="head is drawn in the label map and again in a mask"):
        Case("one", "train", tmp_path, tmp_path, {"head": 1}, masks={"head": Mark(tmp_path)})


def test_drawn_names_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="drawn tail, but the labels have head"):
        Case("one", "train", tmp_path, tmp_path, {"head": 1}, drawn=("tail",))


def test_the_region_in_which_somebody_drew_is_no_structure(tmp_path):
    masks = {"head": Mark(tmp_path, 1), "drawn here": Mark(tmp_path, 2)}
    assert Case("one", "train", tmp_path, masks=masks, drawn_on=(DrawnOn(segment="drawn here"),)).names == ("head",)


def test_a_place_that_says_nowhere_is_refused():
    with pytest.raises(ValueError, match="says nowhere"):
        DrawnOn(axis="i")
    with pytest.raises(ValueError, match="counts planes, from 1"):
        DrawnOn(every=0)
