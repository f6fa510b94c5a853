import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lightning_atlas.data.sources.layouts import read_layout


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6)).save(path)


def table(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def document(names, categories=("cat", "dog"), **box):
    """Of the pictures, with one box of the first category on the first picture."""
    entry = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], **box}
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{key: told for key, told in entry.items() if told is not None}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
    }


def roboflow(root):
    """Each split has pictures of the same names, and its own table beside them."""
    for split in ("test", "train", "valid"):
        for number in range(2):
            picture(root / split / f"{number}.png")
        table(root / split / "_annotations.coco.json", document(["0.png", "1.png"]))
    return root


def published(root, names=("0.png", "1.png"), **others):
    """As COCO lies: one folder of tables, and one of pictures for each split."""
    for split in ("train2017", "val2017"):
        for name in names:
            picture(root / split / name)
        table(root / "annotations" / f"instances_{split}.json", document(names, **others))
    return root


def files(result, root):
    return {case.subject: (case.split, case.image.relative_to(root).as_posix()) for case in result.cases}


def names_of_boxes(result):
    return {case.subject: [result.target_names[int(box[6])] for box in case.boxes] for case in result.cases}


def test_boxes_are_in_voxels_without_crowds_and_images_without_boxes_stay(tmp_path):
    for split, number in (("train", 1), ("val", 2)):
        picture(tmp_path / f"{split}2017/{number}.jpg")
        picture(tmp_path / f"{split}2017/empty{number}.jpg")
        images = [{"id": 10 * number, "file_name": f"{number}.jpg"}, {"id": 1, "file_name": f"empty{number}.jpg"}]
        boxes = [
            {"image_id": 10 * number, "category_id": 7, "bbox": [1, 2, 3.5, 1]},
            {"image_id": 10 * number, "category_id": 7, "bbox": [1, 2, 0, 1]},
            {"image_id": 10 * number, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ]
        told = {"images": images, "annotations": boxes}
        told["categories"] = [{"id": 7, "name": "nodule"}, {"id": 2, "name": "tumour"}]
        table(tmp_path / f"annotations/instances_{split}2017.json", told)
        table(tmp_path / f"annotations/person_keypoints_{split}2017.json", told)
    result = read_layout(tmp_path)
    cases = {case.subject: case for case in result.cases}
    assert result.layout == "coco"
    assert result.target_names == ("tumour", "nodule")
    assert {name: case.split for name, case in cases.items()} == {
        **{"1": "train", "empty1": "train"},
        **{"2": "val", "empty2": "val"},
    }
    assert cases["2"].boxes == ((1.0, 2.0, 0.0, 4.5, 3.0, 1.0, 1.0),)
    assert cases["empty2"].boxes == ()
    assert cases["2"].image == tmp_path / "val2017/2.jpg"
    assert "instances_val2017.json: 1 boxes around crowds and 1 without an extent are left out" in result.notes


def test_the_pictures_beside_a_table_are_its_own(tmp_path):
    root = roboflow(tmp_path / "export")
    splits = {"test": "test", "train": "train", "valid": "val"}
    expected = {f"{name}_{n}": (split, f"{name}/{n}.png") for name, split in splits.items() for n in range(2)}
    assert files(read_layout(root), root) == expected
    only = {str(n): ("train", f"train/{n}.png") for n in range(2)}
    assert files(read_layout(root / "train", "coco"), root) == only
    assert files(read_layout(root / "train" / "_annotations.coco.json", "coco"), root) == only
    (root / "train" / "1.png").unlink()
    told = read_layout(root / "train", "coco")
    assert files(told, root) == {"0": only["0"]}
    assert "lists 2 pictures, and 1 of them cannot be found in" in str(told.defects[0])


def test_pictures_of_the_same_names_in_two_splits_are_called_by_their_folders_too(tmp_path):
    root = published(tmp_path)
    picture(root / "val2017" / "2.png")
    table(root / "annotations" / "instances_val2017.json", document(["0.png", "1.png", "2.png"]))
    assert files(read_layout(root), root) == {
        **{f"train2017_{n}": ("train", f"train2017/{n}.png") for n in range(2)},
        **{f"val2017_{n}": ("val", f"val2017/{n}.png") for n in range(2)},
        "2": ("val", "val2017/2.png"),
    }


def test_pictures_that_differ_in_their_endings_only_are_called_by_these_too(tmp_path):
    for name in ("0.png", "0.jpg", "1.png"):
        picture(tmp_path / "images" / name)
    table(tmp_path / "annotations" / "train.json", document(["0.png", "0.jpg", "1.png"]))
    assert set(files(read_layout(tmp_path), tmp_path)) == {"0.png", "0.jpg", "1"}


def test_a_picture_in_two_tables_stays_one_subject(tmp_path):
    for split in ("train", "val"):
        table(tmp_path / "annotations" / f"{split}.json", document(["0.png"]))
    picture(tmp_path / "images" / "0.png")
    assert [case.subject for case in read_layout(tmp_path).cases] == ["0", "0"]


def test_categories_go_by_their_names(tmp_path):
    root = published(tmp_path)
    table(root / "annotations" / "instances_val2017.json", document(["0.png", "1.png"], ("dog", "cat", "owl")))
    result = read_layout(root)
    assert result.target_names == ("cat", "dog", "owl")
    assert names_of_boxes(result) == {"train2017_0": ["cat"], "train2017_1": [], "val2017_0": ["dog"], "val2017_1": []}
    assert "categories with several ids are one class each, by their names: cat, dog" in result.notes


def test_the_folder_has_all_pictures_and_is_refused_if_another_has_them_too(tmp_path):
    for folder in ("part", "whole"):
        picture(tmp_path / folder / "0.png")
    picture(tmp_path / "whole" / "deep" / "1.png")
    table(tmp_path / "annotations" / "boxes.json", document(["0.png", "deep/1.png"]))
    assert files(read_layout(tmp_path), tmp_path) == {
        "0": ("train", "whole/0.png"),
        "deep_1": ("train", "whole/deep/1.png"),
    }
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    with pytest.raises(ValueError, match=r"lists 0\.png and others, which .*again and .*whole both hold: move it"):
        read_layout(tmp_path)
    shutil.rmtree(tmp_path / "again")
    (tmp_path / "whole" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"lists 0\.png, and no folder near .* holds all its pictures"):
        read_layout(tmp_path)


def test_missing_pictures_are_told_when_they_are_listed(tmp_path):
    root = published(tmp_path, names=("0.png", "1.png", "2.png"))
    (root / "val2017" / "0.png").unlink()
    (root / "val2017" / "2.png").unlink()
    result = read_layout(root)
    (defect,) = result.defects
    assert defect.file == root / "annotations" / "instances_val2017.json"
    assert defect.found == f"lists 3 pictures, and 2 of them cannot be found in {root / 'val2017'}: 0.png, 2.png"
    assert [Path(str(case.image)).name for case in result.cases if case.split == "val"] == ["1.png"]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"bbox": []}, r"annotations 1, is not as COCO writes it \(not enough values to unpack"),
        ({"bbox": [1, 2, "wide", 4]}, r"annotations 1, is not as COCO writes it \(could not convert string"),
        ({"bbox": None}, "annotations 1, lacks 'bbox'; write it like"),
        ({"category_id": 9}, r"annotations 1, is not as COCO writes it \(no category has the id 9\)"),
    ],
)
def test_an_entry_that_is_not_as_coco_writes_it_is_told_with_its_place(box, message, tmp_path):
    with pytest.raises(ValueError, match=rf"instances_train2017\.json, {message}"):
        read_layout(published(tmp_path, **box))
