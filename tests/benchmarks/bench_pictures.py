"""Pictures a second beside plain Pillow and torch, and what it takes to list many of them.

    python tests/benchmarks/bench_pictures.py [read] [list] [--folder FOLDER] [--entries 100000] [--workers 0]

`read` draws photograph-like files (32 x 32 PNG, 500 x 375 JPEG) and makes training batches of them: at 32 a crop of the
padded picture, at 224 a random resized crop, both with reversal and random order of the colours as slices. The plain
way does the same with Pillow and torch alone and without a seed for each sample. They take turns; shown are medians.
`list` makes so many empty files, and lists them as a folder for each class, by a manifest in JSON and in CSV, and by a
file of COCO with seven boxes a picture; each in a process of its own, whose growth in memory is shown. Linux only.
"""

import argparse
import csv
import json
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries are imported, here and in child processes

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchio.transforms import RandomFlip

from lightning_atlas.data import (
    ColoursToSlices,
    Manifest,
    PictureDataModule,
    RandomColoursToSlices,
    RandomCrop,
    RandomResizedCrop,
    ScanLayout,
)

MEAN, DEVIATION = 114.495, 57.63
BATCH, TURNS = 64, 5
CLASSES = 10


def photograph(random: np.random.Generator, wide: int, high: int) -> Image.Image:
    """Blurred noise: it is compressed about as a photograph is."""
    coarse = random.integers(0, 256, (high // 8 + 2, wide // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))


def draw(folder: Path, kind: str, count: int) -> Path:
    """Draw pictures into a folder for each class, if they are not there."""
    place = folder / f"{kind}_{count}"
    if not place.exists():
        random = np.random.default_rng(0)
        for number in range(count):
            (place / str(number % CLASSES)).mkdir(parents=True, exist_ok=True)
            size = (32, 32) if kind == "png" else (500, 375)
            photograph(random, *size).save(place / str(number % CLASSES) / f"{number}.{kind}", quality=90)
    return place


class PlainPictures(Dataset):
    """What a person writes who has Pillow and torch: transforms of Pillow's, global random numbers."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files = sorted(folder.rglob("*.*"))
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[n]) as picture:
            image = picture.convert("RGB")
        if self.size == 32:
            i, j = torch.randint(9, (2,)).tolist()
            image = image.crop((i - 4, j - 4, i + 28, j + 28))
        else:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self.part(*image.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        if torch.rand(1).item() < 0.5:
            pixels = pixels.flip(2)
        return (pixels[torch.randperm(3)] - MEAN) / DEVIATION, int(self.files[n].parent.name)

    def part(self, wide: int, high: int) -> tuple[float, float, float, float]:
        for _ in range(10):
            area = wide * high * float(torch.empty(1).uniform_(0.08, 1))
            ratio = float(torch.empty(1).uniform_(np.log(3 / 4), np.log(4 / 3)).exp())
            i, j = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < i <= wide and 0 < j <= high:
                low = int(torch.randint(wide - i + 1, ())), int(torch.randint(high - j + 1, ()))
                return low[0], low[1], low[0] + i, low[1] + j
        return 0, 0, wide, high


def passed(loader: DataLoader) -> float:
    """Return the pictures a second of one pass."""
    start, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return count / (time.perf_counter() - start)


def read(folder: Path, workers: int) -> None:
    """Compare training batches."""
    for kind, size, count in (("png", 32, 4096), ("jpg", 224, 512)):
        place = draw(folder, kind, count)
        crop = RandomCrop((32, 32), 4) if size == 32 else RandomResizedCrop((size, size))
        augment = [crop, RandomFlip(axes=(0,)), RandomColoursToSlices()]
        settings = {"augment": augment, "evaluate": [ColoursToSlices()], "batch_size": BATCH, "num_workers": workers}
        runs: dict[str, Callable[[], float]] = {}
        for name, keep_mib in (("from files", 0.0), ("kept in memory", 1024.0)):
            data = PictureDataModule(ScanLayout(place), keep_mib=keep_mib, **settings)
            data.setup("fit")
            runs[name] = lambda data=data: passed(data.train_dataloader())
        plain = PlainPictures(place, size)
        runs["Pillow and torch"] = lambda plain=plain: passed(
            DataLoader(plain, BATCH, shuffle=True, drop_last=True, num_workers=workers)
        )
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(TURNS):
            for name, run in runs.items():
                found[name].append(run())
        for name, rates in found.items():
            ratio = statistics.median(a / b for a, b in zip(rates, found["Pillow and torch"], strict=True))
            print(f"{size:>4}  {name:18} {statistics.median(rates):8.0f} pictures/s  {ratio:5.2f} of plain", flush=True)


def lay_out(folder: Path, entries: int) -> None:
    """Make the files, and the tables that name them."""
    if (folder / "list.json").exists():
        return
    files = [f"images/{number % CLASSES}/{number:08d}.jpg" for number in range(entries)]
    for number in range(CLASSES):
        (folder / "images" / str(number)).mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    rows = [{"subject": Path(file).stem, "image": file, "target": n % CLASSES} for n, file in enumerate(files)]
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "annotations").mkdir()
    document = {
        "images": [{"id": n, "file_name": file, "width": 640, "height": 480} for n, file in enumerate(files)],
        "annotations": [
            {"image_id": n, "category_id": box, "bbox": [box, box, 50.0, 60.0], "iscrowd": 0}
            for n in range(entries)
            for box in range(7)
        ],
        "categories": [{"id": number, "name": str(number)} for number in range(CLASSES)],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "list.json").write_text(json.dumps({"subjects": rows}), encoding="utf-8")


def resident_mib() -> float:
    """Return what this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """Return the most that this process held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def listed(kind: str, folder: Path) -> tuple[float, float, float]:
    """Return seconds, the growth of the memory at its highest, and what stays."""
    sources = {
        "a folder for each class": lambda: PictureDataModule(ScanLayout(folder / "images", layout="imagefolder")),
        "manifest (JSON)": lambda: PictureDataModule(
            Manifest(folder / "list.json"), classes=[str(number) for number in range(CLASSES)]
        ),
        "manifest (CSV)": lambda: PictureDataModule(
            Manifest(folder / "table.csv"), classes=[str(number) for number in range(CLASSES)]
        ),
        "COCO": lambda: PictureDataModule(ScanLayout(folder, layout="coco"), boxes=True),
    }
    data, before, start = sources[kind](), resident_mib(), time.perf_counter()
    assert len(data.listed.splits["train"].files) > 0
    return time.perf_counter() - start, peak_mib() - before, resident_mib() - before


KINDS = ("a folder for each class", "manifest (JSON)", "manifest (CSV)", "COCO")


def list_many(folder: Path, entries: int) -> None:
    """List in a process of its own each."""
    lay_out(folder, entries)
    for kind in KINDS:
        with get_context("spawn").Pool(1) as pool:
            seconds, most, stays = pool.apply(listed, (kind, folder))
        print(f"{entries} pictures, {kind:24} {seconds:6.1f} s, {most:5.0f} MiB at most, {stays:5.0f} stay", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="read and list, or one of them")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    parts = given.parts or ["read", "list"]
    torch.set_num_threads(1)
    with TemporaryDirectory() as fresh:
        folder = given.folder or Path(fresh)
        if "read" in parts:
            read(folder, given.workers)
        if "list" in parts:
            list_many(folder / f"list_{given.entries}", given.entries)


if __name__ == "__main__":
    main()
