"""Classes of pictures go by their names, whatever numbers their sources give them."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchio.transforms import RandomFlip

from lightning_atlas.data import Manifest, Mixture, PictureDataModule, ScanDataModule, ScanLayout, Targets


def folders(path, *kinds, splits=("train", "val")):
    """A picture of each class in each split."""
    for split in splits:
        for kind in kinds:
            (path / split / kind).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path / split / kind / "0.png")
    return ScanLayout(path, layout="imagefolder")


def told(source, split="train", **settings):
    """Subject -> the class that it gets by name."""
    data = PictureDataModule(source, batch_size=1, **settings)
    batches = list(data.train_dataloader() if split == "train" else data.test_dataloader())
    return {batch["subject"][0]: data.contract.classes[int(batch["target"])] for batch in batches}


@pytest.mark.parametrize("names", [["owl", "dog", "cat"], ["dog", "bird", "owl", "cat"]])
def test_classes_of_folders_go_by_their_names_in_any_order_and_among_others(tmp_path, names):
    source = folders(tmp_path, "cat", "dog", "owl", splits=("train", "test"))
    wanted: list[dict[str, Any]] = [{"classes": names}, {"targets": Targets("class", names)}]
    for settings in wanted:
        for split in ("train", "test"):
            assert told(source, split, **settings) == {f"{split}_{kind}_0": kind for kind in ("cat", "dog", "owl")}


def test_scans_whose_classes_the_folders_name_go_by_their_names_too(tmp_path):
    source = folders(tmp_path, "cat", "dog", splits=("train", "test"))
    data = ScanDataModule(source, targets=Targets("class", ["owl", "dog", "cat"]))
    assert {case.subject: case.target for case in data.cases} == {
        f"{split}_{kind}_0": number for split in ("train", "test") for kind, number in (("cat", 2), ("dog", 1))
    }


def test_a_folder_that_is_no_class_is_refused(tmp_path):
    source = folders(tmp_path / "photos", "cat", "dog", "owl")
    wanted: list[dict[str, Any]] = [{"classes": ["dog", "cat"]}, {"targets": Targets("class", ["dog", "cat"])}]
    for settings in wanted:
        with pytest.raises(ValueError, match=r"photos: there are images of owl, which the classes \(dog, cat\) do not"):
            PictureDataModule(source, **settings).setup("fit")


def test_a_mixture_of_folders_numbers_the_classes_of_all_once(tmp_path):
    source = Mixture({"a": folders(tmp_path / "a", "cat", "dog"), "b": folders(tmp_path / "b", "bird", "cat")})
    kinds = {"a-train_cat_0": "cat", "train_dog_0": "dog", "train_bird_0": "bird", "b-train_cat_0": "cat"}
    assert PictureDataModule(source).contract.classes == ("cat", "dog", "bird")
    wanted: list[dict[str, Any]] = [
        {},
        {"classes": ["bird", "cat", "dog"]},
        {"targets": Targets("class", ["dog", "bird", "cat"])},
    ]
    for settings in wanted:
        assert told(source, **settings) == kinds
        assert told(Mixture({"all": source}), **settings) == kinds
    with pytest.raises(ValueError, match="there are images of bird"):
        told(source, classes=["cat", "dog"])


def test_what_folders_leave_out_is_told_before_a_run(tmp_path, capsys):
    source = folders(tmp_path / "a", "cat", "dog")
    (tmp_path / "a/train/cat/1.bmp").touch()
    wanted = "note: files left out: 1 .bmp\nnote: classes: 0 cat, 1 dog\n"
    PictureDataModule(source).prepare_data()
    assert capsys.readouterr().out == wanted
    PictureDataModule(Mixture({"a": source})).prepare_data()
    assert capsys.readouterr().out == wanted


def test_numbers_beside_names_are_places_in_the_classes(tmp_path):
    named = folders(tmp_path, "cat", "dog")
    (tmp_path / "other.png").write_bytes((tmp_path / "train/cat/0.png").read_bytes())
    subject = {"subject": "other", "image": "other.png", "target": 1}
    (tmp_path / "list.json").write_text(json.dumps({"subjects": [subject]}), encoding="utf-8")
    source = Mixture({"named": named, "numbered": Manifest(tmp_path / "list.json")})
    assert told(source, classes=["dog", "bird", "cat"])["other"] == "bird"
    with pytest.raises(ValueError, match=r"that of other is a number only: set data\.init_args\.classes"):
        told(source)


def test_classes_that_are_mirror_images_by_name_are_not_mirrored(tmp_path):
    source = folders(tmp_path / "hands", "hand_left", "hand_right")
    with pytest.raises(ValueError, match="a mirrored hand_left would keep its name, though hand_right is a class too"):
        _ = PictureDataModule(source, augment=[RandomFlip(axes=(0,))]).contract
    assert PictureDataModule(source).contract.mirrored_axes == ()
    whales = folders(tmp_path / "whales", "right_whale", "grey_whale")
    assert PictureDataModule(whales, augment=[RandomFlip(axes=(0,))]).contract.mirrored_axes == ("i",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["cat", "dog"], "targets": Targets("class", ["cat", "dog"])}, "targets name the classes"),
        ({"classes": ["cat", "dog", "cat"]}, "each class once; found cat, dog, cat"),
    ],
)
def test_classes_are_named_once(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        PictureDataModule(folders(tmp_path, "cat", "dog"), **settings)
