import pytest
from PIL import Image

from lightning_atlas.data.sources.layouts import read_layout


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6)).save(path)


def pictures(root, *names):
    for name in names:
        picture(root / name)
    return root


def splits_of_pets(root, *names):
    return pictures(root, *(f"{split}/{kind}/0.png" for split in ("train", "test") for kind in ("cat", "dog")), *names)


def found(result):
    return {case.subject: (case.split, result.target_names[case.target]) for case in result.cases}


PETS = {f"{split}_{kind}_0": (split, kind) for split in ("train", "test") for kind in ("cat", "dog")}


def test_a_folder_per_class_gives_numbers_by_sorted_name(tmp_path):
    pictures(tmp_path, "train/dog/1.png", "train/cat/1.png", "train/cat/1.jpg", "val/cat/deep/2.JPEG")
    result = read_layout(tmp_path)
    assert result.layout == "imagefolder"
    assert result.target_names == ("cat", "dog")
    assert {case.subject: (case.split, case.target) for case in result.cases} == {
        "train_cat_1": ("train", 0),
        "train_cat_1.png": ("train", 0),
        "train_dog_1": ("train", 1),
        "val_cat_deep_2": ("val", 0),
    }
    assert result.notes[1:] == ["classes: 0 cat, 1 dog"]


@pytest.mark.parametrize("layout", [None, "imagefolder"])
def test_a_folder_beside_the_splits_does_not_make_them_classes(layout, tmp_path):
    splits_of_pets(tmp_path)
    (tmp_path / "runs" / "today").mkdir(parents=True)
    (tmp_path / "runs" / "today" / "recipe.yaml").touch()
    (tmp_path / "val").mkdir()
    result = read_layout(tmp_path, layout)
    assert found(result) == PETS
    assert "folders without a picture are left out: runs, val" in result.notes


def test_pictures_beside_the_splits_are_refused_by_name(tmp_path):
    splits_of_pets(tmp_path, "owl/deep/0.png")
    with pytest.raises(
        ValueError, match=r"owl holds pictures \(deep/0\.png\) and lies beside test, train, which are sp"
    ):
        read_layout(tmp_path, "imagefolder")


def test_trains_are_a_class_of_vehicles(tmp_path):
    pictures(tmp_path, "bus/0.png", "car/0.png", "train/0.png")
    names = ("bus", "car", "train")
    assert found(read_layout(tmp_path)) == {f"{name}_0": ("train", name) for name in names}


def test_a_split_whose_pictures_lie_in_no_class_is_refused(tmp_path):
    """So ImageNet's validation pictures come."""
    splits_of_pets(tmp_path, "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(
        ValueError, match=r"val holds pictures \(1\) and no folder for a class.* put them into val/CLASS/"
    ):
        read_layout(tmp_path)


def test_files_that_are_not_read_are_counted(tmp_path):
    splits_of_pets(tmp_path, "train/cat/1.bmp", "train/dog/more/1.bmp", "test/cat/1.tif", "train/loose.png")
    (tmp_path / "train" / "cat" / "LICENSE").touch()
    (tmp_path / "test" / "dog" / ".DS_Store").touch()
    result = read_layout(tmp_path)
    assert found(result) == PETS
    assert "files left out: 2 .bmp, 1 in no class, 1 .tif, 1 without an ending" in result.notes


@pytest.mark.parametrize(("held", "told"), [(["1.bmp", "2.bmp"], "2 .bmp"), ([], "it is empty")])
def test_a_class_without_a_picture_is_refused(held, told, tmp_path):
    splits_of_pets(tmp_path, *(f"train/owl/{name}" for name in held))
    (tmp_path / "train" / "owl").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=rf"owl holds no PNG or JPEG \({told}\), so its class cannot be learned"):
        read_layout(tmp_path)


def test_a_class_may_be_missing_in_one_split(tmp_path):
    splits_of_pets(tmp_path, "train/owl/0.png")
    (tmp_path / "test" / "owl").mkdir()
    result = read_layout(tmp_path)
    assert found(result) == PETS | {"train_owl_0": ("train", "owl")}
    assert "folders without a picture are left out: test/owl" in result.notes


def test_links_are_followed_and_what_is_hidden_is_not(tmp_path):
    root = pictures(tmp_path / "pets", "cat/0.png", "dog/0.png", "cat/.ipynb_checkpoints/0.png", "dog/a/.b/1.png")
    pictures(tmp_path, "more/7.png")
    (root / "dog" / "linked").symlink_to(tmp_path / "more")
    (root / "owl").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(root / "dog")
    (root / "cat" / "self").symlink_to("self")
    result = read_layout(root, "imagefolder")
    assert set(found(result)) == {"cat_0", "dog_0", "dog_linked_7", "owl_7", "owl_back_0"}


def test_names_that_differ_in_capital_letters_only_stay_apart(tmp_path):
    pictures(tmp_path, "cat/A.png", "cat/a.jpg", "dog/0.png")
    assert set(found(read_layout(tmp_path))) == {"cat_A", "cat_a.jpg", "dog_0"}
