"""Photographs go through the same module as scans."""

import numpy as np
import torch
from PIL import Image

from lightning_atlas.data import ColoursToSlices, Patches, ScanDataModule, ScanLayout, Splits


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
    data = ScanDataModule(ScanLayout(tmp_path / "photos"), preprocess=[ColoursToSlices()], patches=patches)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 16, 16, 3)
    chat = next(n for n, case in enumerate(data.opened["train"]) if case.target == 0)
    assert np.array_equal(
        data.whole("train", chat)["image"][0, 0].numpy(), pixels.transpose(1, 0, 2).astype(np.float32)
    )
