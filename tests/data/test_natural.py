"""Photographs: through a data module of their own, and through the same module as scans."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchio.transforms import RandomFlip, RandomGamma, ToOrientation

from lightning_atlas.data import (
    CentreCrop,
    ColoursToSlices,
    DrawnPictures,
    Manifest,
    Patches,
    PictureDataModule,
    RandomColoursToSlices,
    RandomCrop,
    RandomResizedCrop,
    ResizePicture,
    ScanDataModule,
    ScanLayout,
    Splits,
    Targets,
)
from lightning_atlas.modules.variable_dimension import check_pictures

KINDS = ("cat", "dog", "owl")
LEFT_RIGHT: Any = ("LR",)  # TorchIO says numbers, and takes names


def pixels_of(split, kind, number, size=(12, 16)):
    seed = [len(split), KINDS.index(kind), number]
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Four pictures of each of three classes to learn from, two to validate on, two to test on; 16 columns, 12 rows."""
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in KINDS:
            folder = tmp_path / "photos" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(pixels_of(split, kind, number)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def module(photos, batch_size=4, **settings):
    return PictureDataModule(ScanLayout(photos), batch_size=batch_size, **settings)


def normal(pixels):
    return torch.from_numpy((pixels.transpose(1, 0, 2).astype(np.float32) - 114.495) / 57.63)


@pytest.mark.parametrize("keep_mib", [0.0, 1.0])
def test_a_picture_read_and_batched_is_pillows_array(photos, keep_mib):
    data = module(photos, evaluate=[ColoursToSlices()], keep_mib=keep_mib)
    data.setup("test")
    assert data.opened["test"].held.whole is (keep_mib > 0)
    found = {}
    for batch in data.test_dataloader():
        assert batch["image"].shape[1:] == (1, 16, 12, 3)
        assert batch["image"].dtype == torch.float32
        found |= dict(zip(batch["subject"], zip(batch["image"][:, 0], batch["target"], strict=True), strict=True))
    assert len(found) == 6
    for name, (image, target) in found.items():
        split, kind, number = name.split("_")
        assert KINDS[int(target)] == kind
        with Image.open(photos / split / kind / f"{number}.png") as picture:
            assert torch.allclose(image, normal(np.asarray(picture)), atol=1e-6)


def test_without_slices_the_colours_are_channels(photos):
    data = module(photos)
    batch = data.whole("val", 0)
    split, kind, number = batch["subject"][0].split("_")
    assert batch["image"].shape == (1, 3, 16, 12, 1)
    assert torch.allclose(batch["image"][0, ..., 0].movedim(0, 2), normal(pixels_of(split, kind, int(number))))
    assert data.contract.channels == ("red", "green", "blue")


@pytest.mark.parametrize(("given", "lacking"), [("augment", "evaluate"), ("evaluate", "augment")])
def test_colours_are_slices_in_training_and_in_scoring_or_in_neither(photos, given, lacking):
    settings: Any = {given: [ColoursToSlices()]}
    data = module(photos, **settings)
    with pytest.raises(ValueError, match=rf"at the end of data.init_args.{lacking}"):
        _ = data.contract


def test_the_contract_says_what_a_photograph_is(photos):
    data = module(photos, augment=[RandomFlip(axes=(0,)), RandomColoursToSlices()], evaluate=[ColoursToSlices()])
    contract = data.contract
    assert contract.classes == KINDS
    assert contract.predicts == "class"
    assert contract.modality == "photograph"
    assert contract.orientation == "LPS"
    assert contract.spacing_mm is None
    assert contract.channels == ("image",)
    assert contract.mirrored_axes == ("i",)
    assert contract.normalization == "linear"
    assert contract.window == (0, 255)
    assert contract.range == pytest.approx((-114.495 / 57.63, (255 - 114.495) / 57.63))
    assert data.describe() == (
        "scans of photos, 6 test + 12 train + 6 val; class of each picture (cat, dog, owl); LPS; 4 a step"
    )


def drawn(data, epoch=0, start=0):
    loader = data.train_dataloader()
    loader.sampler.epoch, loader.sampler.first_epoch, loader.sampler.start = epoch, epoch, start
    return list(loader)


AUGMENT = (RandomCrop((16, 12), 2), RandomFlip(axes=(0,)), RandomGamma(), RandomColoursToSlices())


def test_a_sample_depends_on_seed_epoch_and_index_only(photos):
    settings = {"augment": list(AUGMENT), "evaluate": [ColoursToSlices()]}
    first = drawn(module(photos, **settings), epoch=3)
    torch.manual_seed(99)
    for other in (
        drawn(module(photos, **settings, num_workers=2), epoch=3),
        drawn(module(photos, **settings, keep_mib=0.0), epoch=3),
        [*drawn(module(photos, **settings), epoch=3)[:1], *drawn(module(photos, **settings), epoch=3, start=1)],
    ):
        assert [batch["subject"] for batch in other] == [batch["subject"] for batch in first]
        assert all(torch.equal(ours["image"], theirs["image"]) for ours, theirs in zip(first, other, strict=True))
    others = drawn(module(photos, **settings), epoch=4), drawn(module(photos, **settings, seed=1), epoch=3)
    for other in others:
        assert not torch.equal(other[0]["image"], first[0]["image"])


def test_the_global_generator_is_left_alone(photos):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    drawn(module(photos, augment=list(AUGMENT)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_epoch_has_every_picture_once(photos):
    for epoch in (0, 1):
        names = [name for batch in drawn(module(photos), epoch=epoch) for name in batch["subject"]]
        assert len(names) == len(set(names)) == 12
    assert module(photos).batches_per_epoch == 3
    longer = [name for batch in drawn(module(photos, per_epoch=24)) for name in batch["subject"]]
    assert all(longer.count(name) == 2 for name in set(longer))


def test_pictures_of_unlike_sizes_are_padded_in_training_and_come_one_by_one_elsewhere(tmp_path):
    for split in ("train", "test"):
        for kind, size in (("cat", (12, 16)), ("dog", (20, 10))):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(pixels_of(split, kind, 0, size)).save(tmp_path / split / kind / "0.png")
    data = module(tmp_path, batch_size=2)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 20, 1)
    cat = batch["subject"].index("train_cat_0")
    assert not batch["image"][cat, :, :, 12:].any()
    pixels = normal(pixels_of("train", "cat", 0)).movedim(2, 0)
    assert torch.allclose(batch["image"][cat, :, :, :12, 0], pixels)
    with pytest.raises(ValueError, match=r"10 x 20 and 16 x 12 in one batch: let evaluate end with CentreCrop"):
        next(iter(module(tmp_path, evaluation_batch_size=2).test_dataloader()))
    sides = [tuple(each["image"].shape[2:4]) for each in data.test_dataloader()]
    assert sides == [(16, 12), (10, 20)]
    alike = module(tmp_path, batch_size=2, evaluate=[ResizePicture(8), CentreCrop((8, 8))])
    assert next(iter(alike.test_dataloader()))["image"].shape == (2, 3, 8, 8, 1)
    assert len(list(module(tmp_path, evaluation_batch_size=1).test_dataloader())) == 2


def coco(folder, boxes=((4.5, 2, 6, 5),), names=("cat", "dog")):
    """One picture of 16 columns and 12 rows in which the boxes are white, and what COCO says of it."""
    pixels = np.zeros((12, 16, 3), np.uint8)
    for x, y, width, height in boxes:
        pixels[int(y) : int(y + height), round(x) : round(x + width)] = 255
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    Image.fromarray(pixels).save(folder / "train2017" / "000001.jpg")
    document = {
        "images": [{"id": 1, "file_name": "000001.jpg", "width": 16, "height": 12}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": box, "iscrowd": 0} for box in boxes],
        "categories": [{"id": number, "name": name} for number, name in zip((3, 7), names, strict=True)],
    }
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_boxes_of_coco_come_with_the_pictures(tmp_path):
    settings = {"boxes": True, "batch_size": 1, "evaluate": [ColoursToSlices()]}
    data = module(coco(tmp_path), augment=[ColoursToSlices()], **settings)
    batch = next(iter(data.train_dataloader()))
    assert data.contract.predicts == "boxes"
    assert data.contract.classes == ("cat", "dog")
    assert "target" not in batch
    assert batch["boxes"][0].corners.tolist() == [[4.5, 2, 0, 10.5, 7, 3]]
    assert batch["boxes"][0].classes.tolist() == [1]
    flipped = module(coco(tmp_path / "b"), augment=[RandomFlip(axes=(0,), flip_probability=1)], **settings)
    assert next(iter(flipped.train_dataloader()))["boxes"][0].corners.tolist() == [[5.5, 2, 0, 11.5, 7, 1]]
    larger = module(coco(tmp_path / "c"), augment=[ResizePicture(24), ColoursToSlices()], **settings)
    assert next(iter(larger.train_dataloader()))["boxes"][0].corners.tolist() == [[9, 4, 0, 21, 14, 3]]


def test_boxes_of_coco_go_by_the_names_of_their_classes(tmp_path):
    source = ScanLayout(coco(tmp_path))
    data = PictureDataModule(source, boxes=True, classes=["bird", "dog", "cat"], batch_size=1)
    assert next(iter(data.train_dataloader()))["boxes"][0].classes.tolist() == [1]
    # a category without a box may be left out
    assert PictureDataModule(source, boxes=True, classes=["dog"]).contract.classes == ("dog",)
    with pytest.raises(ValueError, match="there are images of dog"):
        PictureDataModule(source, boxes=True, classes=["cat"]).setup("fit")


def test_a_patient_or_a_picture_in_two_splits_is_refused_without_a_division_too(photos, tmp_path):
    files = [photos / "train" / "cat" / f"{number}.png" for number in range(2)]
    entries = [
        {"subject": f"s{n}", "split": split, "image": str(file), "target": n, "patient": f"p{n}"}
        for n, (split, file) in enumerate(zip(("train", "test"), files, strict=True))
    ]
    table = tmp_path / "list.json"
    sharing = {
        "patient p0 is in two splits: s0 in train and s1 in test": {"patient": "p0"},
        "one image under two names: s0 and s1": {"image": str(files[0])},
    }
    for message, same in sharing.items():
        table.write_text(json.dumps({"subjects": [entries[0], entries[1] | same]}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            PictureDataModule(Manifest(table), classes=["cat", "dog"]).setup("fit")
        with pytest.raises(ValueError, match=message):
            _ = ScanDataModule(Manifest(table)).cases


def test_boxes_of_mirror_images_by_name_are_not_mirrored(tmp_path):
    source = ScanLayout(coco(tmp_path, names=("hand_left", "hand_right")))
    with pytest.raises(ValueError, match="a mirrored hand_left would keep its name, though hand_right is a class too"):
        _ = PictureDataModule(source, boxes=True, augment=[RandomFlip(axes=(0,))]).contract


def test_a_picture_without_boxes_has_none(tmp_path):
    data = module(coco(tmp_path, ()), boxes=True, batch_size=1)
    assert next(iter(data.train_dataloader()))["boxes"][0].corners.shape == (0, 6)


def test_a_manifest_and_a_table_say_the_same(photos, tmp_path):
    files = [(split, kind) for split in ("train", "test") for kind in KINDS]
    subjects = [
        {
            "subject": f"{split}-{kind}",
            "split": split,
            "image": str(photos / split / kind / "0.png"),
            "target": KINDS.index(kind),
            "boxes": [[1, 2, 0, 5, 6, 1, KINDS.index(kind)]],
            "patient": kind if split == "train" else f"other {kind}",
        }
        for split, kind in files
    ]
    (tmp_path / "list.json").write_text(json.dumps({"subjects": subjects}), encoding="utf-8")
    source = Manifest(tmp_path / "list.json")
    data = PictureDataModule(source, classes=list(KINDS), batch_size=3)
    batch = next(iter(data.test_dataloader()))
    assert [KINDS[number] for number in batch["target"]] == [name.split("-")[1] for name in batch["subject"]]
    assert data.patients("test") == ["other cat", "other dog", "other owl"]
    with pytest.raises(ValueError, match="nothing says what the classes are called"):
        PictureDataModule(source, batch_size=3).setup("fit")
    with pytest.raises(ValueError, match="the classes of boxes go up to 2, and 2 have names"):
        PictureDataModule(source, classes=["cat", "dog"], boxes=True).setup("fit")
    values = Targets("values", ["age"])
    ages = next(iter(PictureDataModule(source, values, batch_size=3).test_dataloader()))["target"]
    assert ages.tolist() == [[0], [1], [2]]


def test_one_folder_is_no_class_to_tell_from_others_and_a_missing_test_names_the_verb(photos):
    with pytest.raises(ValueError, match="the verb validate scores those of val"):
        PictureDataModule(DrawnPictures(train=1, val=1, test=0), boxes=True).test_dataloader()
    for kind in KINDS[1:]:
        for split in ("train", "val", "test"):
            shutil.rmtree(photos / split / kind)
    data = PictureDataModule(ScanLayout(photos, layout="imagefolder"))
    with pytest.raises(ValueError, match=f"there is one class, {KINDS[0]}, and to tell classes apart takes two"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate": [RandomCrop((8, 8))]}, "evaluate: RandomCrop draws at random"),
        ({"boxes": True, "targets": Targets("class", list(KINDS))}, "leave one of them out"),
        ({"deviation": 0.0}, "deviation divides"),
        (
            {"boxes": True, "augment": [RandomResizedCrop(), RandomFlip(axes=LEFT_RIGHT)]},
            "boxes cannot follow RandomFlip",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(photos, settings, message):
    with pytest.raises(ValueError, match=message):
        module(photos, **settings)


def test_deep_grey_is_no_photograph(tmp_path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / kind / "0.png")
    with pytest.raises(ValueError, match=r"0\.png has grey values of more than 8 bits \(I;16\), not colours"):
        module(tmp_path, batch_size=1).setup("fit")


def test_a_folder_for_each_class_becomes_batches_with_targets(tmp_path):
    random = np.random.default_rng(0)
    for kind in ("chat", "chien"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{kind}{number}.png")
    patches = Patches((16, 16, 1), per_epoch=8)
    data = ScanDataModule(
        ScanLayout(tmp_path / "photos"), patches=patches, splits=Splits(val_share=0.25, test_share=0.0), batch_size=4
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16, 1)
    assert batch["target"].dtype == torch.int64
    kinds = {"chat": 0, "chien": 1}
    assert [kinds[subject.rstrip("0123456789").split("-")[-1].split("_")[-1]] for subject in batch["subject"]] == batch[
        "target"
    ].tolist()


def test_a_photograph_reads_as_pillow_has_it_and_is_never_turned(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    (tmp_path / "photos" / "chat").mkdir(parents=True)
    (tmp_path / "photos" / "chien").mkdir(parents=True)
    for kind in ("chat", "chien"):
        Image.fromarray(pixels + (kind == "chien")).save(tmp_path / "photos" / kind / f"{kind}.png")
    data = ScanDataModule(ScanLayout(tmp_path / "photos"), patches=Patches((8, 8, 1)))
    data.setup("fit")
    chat = next(n for n, case in enumerate(data.opened["train"]) if case.target == 0)
    image = data.whole("train", chat)["image"][0, :, :, :, 0]
    assert np.array_equal(image.numpy(), pixels.transpose(2, 1, 0).astype(np.float32))


def test_colours_become_slices_of_a_volume(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    for kind in ("chat", "chien"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        Image.fromarray(pixels + (kind == "chien")).save(tmp_path / "photos" / kind / f"{kind}.png")
    patches = Patches((16, 16, 3), per_epoch=2)
    source, slices = ScanLayout(tmp_path / "photos"), [ToOrientation("LPS"), ColoursToSlices()]
    with pytest.raises(ValueError, match=r" ColoursToSlices} at the end of data.init_args.preprocess"):
        _ = ScanDataModule(source, augment=[RandomColoursToSlices()], patches=patches).contract
    data = ScanDataModule(source, preprocess=slices, augment=[RandomColoursToSlices()], patches=patches)
    data.setup("fit")
    check_pictures(data.contract)
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 16, 16, 3)
    chat = next(n for n, case in enumerate(data.opened["train"]) if case.target == 0)
    assert np.array_equal(
        data.whole("train", chat)["image"][0, 0].numpy(), pixels.transpose(1, 0, 2).astype(np.float32)
    )
