import json

from PIL import Image

from lightning_atlas.data.sources.layouts import read_layout


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6)).save(path)
    return path


def table(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")


def splits(result):
    return {case.subject: case.split for case in result.cases}


def case_of(result, subject):
    return next(case for case in result.cases if case.subject == subject)


def imagefolder(root):
    for name in ("train/dog/1.png", "train/cat/1.png", "train/cat/1.jpg", "val/cat/deep/2.JPEG"):
        picture(root / name)


def coco(root):
    for split, number in (("train", 1), ("val", 2)):
        picture(root / f"{split}2017/{number}.jpg")
        picture(root / f"{split}2017/empty{number}.jpg")
        images = [{"id": 10 * number, "file_name": f"{number}.jpg"}, {"id": 1, "file_name": f"empty{number}.jpg"}]
        boxes = [
            {"image_id": 10 * number, "category_id": 7, "bbox": [1, 2, 3.5, 1]},
            {"image_id": 10 * number, "category_id": 7, "bbox": [1, 2, 0, 1]},
            {"image_id": 10 * number, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ]
        document = {"images": images, "annotations": boxes}
        document["categories"] = [{"id": 7, "name": "nodule"}, {"id": 2, "name": "cyst"}]
        table(root / f"annotations/instances_{split}2017.json", document)
        table(root / f"annotations/person_keypoints_{split}2017.json", document)


def test_a_folder_per_class_gives_numbers_by_sorted_name(tmp_path):
    imagefolder(tmp_path)
    result = read_layout(tmp_path)
    assert result.layout == "imagefolder"
    assert result.target_names == ("cat", "dog")
    assert {case.subject: (case.split, case.target) for case in result.cases} == {
        "train_cat_1": ("train", 0),
        "train_cat_1.png": ("train", 0),
        "train_dog_1": ("train", 1),
        "val_cat_deep_2": ("val", 0),
    }


def test_coco_boxes_are_in_voxels_without_crowds_and_images_without_boxes_stay(tmp_path):
    coco(tmp_path)
    result = read_layout(tmp_path)
    assert result.layout == "coco"
    assert result.target_names == ("cyst", "nodule")
    assert splits(result) == {"1": "train", "empty1": "train", "2": "val", "empty2": "val"}
    assert case_of(result, "2").boxes == ((1.0, 2.0, 0.0, 4.5, 3.0, 1.0, 1.0),)
    assert case_of(result, "empty2").boxes == ()
    assert case_of(result, "2").image == tmp_path / "val2017/2.jpg"
    assert "instances_val2017.json: 1 boxes around crowds and 1 without an extent are left out" in result.notes
