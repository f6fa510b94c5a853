"""Speed, memory and order of data beside MONAI, TorchIO, batchgeneratorsv2 and nnU-Net, with one thread each.

    python tests/benchmarks/bench_data.py [--folder FOLDER] [patches] [formats] [augment] [open] [prepare] [order]

All is measured on synthetic CT-like volumes with 25 structures, which stay in FOLDER (else they are made anew each
time). Ours and the peers take turns; shown are medians of the turns, and the median of their ratios. Linux only. Peers
that are not installed are said so; nnU-Net runs without the torchvision that it names, in an environment of its own:

    pip install --no-deps nnunetv2 batchgeneratorsv2 batchgenerators acvl_utils dynamic-network-architectures seaborn
    pip install blosc2 connected-components-3d h5py pandas scikit-image scikit-learn threadpoolctl zarr
"""

import argparse
import hashlib
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries are imported, here and in child processes
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
os.environ["BLOSC_NTHREADS"] = "1"

import bench_data_peers as peers
import numpy as np
import torch
from bench_data_volumes import COARSE_MM, FINE_MM, LARGE, NAMES, SHAPE, SMALL, SPACING_MM, links, manifest, pairs
from torch.utils.data import DataLoader
from torchio.transforms import Clamp, RandomGamma, RandomNoise, Resample, RescaleIntensity, ToCanonical, Transform

from lightning_atlas.data import BatchAugmentation, Manifest, Patches, ScanDataModule
from lightning_atlas.data.patches import PatchDataset
from lightning_atlas.data.sampling import AtlasSampler, collate
from lightning_atlas.data.store.keys import store_key, store_root
from lightning_atlas.data.store.prepare import prepare_all
from lightning_atlas.types import Batch

PATCH = (96, 96, 96)
WINDOW_HU = (-200.0, 300.0)
TURNS = 7
SUBJECTS = 9262
"""Of AbdomenAtlas 1.1."""


def transforms(spacing_mm: float | None = None) -> list[Transform]:
    """Return the usual way of a CT: one orientation, one spacing, a window."""
    resampled = [] if spacing_mm is None else [Resample(spacing_mm)]
    low, high = WINDOW_HU
    return [ToCanonical(), *resampled, Clamp(low, high), RescaleIntensity((-1, 1), in_min_max=WINDOW_HU)]


def opened(path: Path, cut: Patches) -> ScanDataModule:
    """Return the data module of a manifest, prepared and open."""
    data = ScanDataModule(Manifest(path), None, transforms(), patches=cut, batch_size=2)
    data.setup("fit")
    return data


def seconds_each(arms: Mapping[str, peers.Turn], turns: int = TURNS) -> dict[str, list[float]]:
    """Let all take turns after one that does not count, and return the time of each item."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-1, turns):
        for name, arm in arms.items():
            begin = time.perf_counter()
            count = arm()
            if turn >= 0:
                times[name].append((time.perf_counter() - begin) / count)
    return times


def show(title: str, times: Mapping[str, list[float]], lacking: Mapping[str, str] | None = None) -> None:
    """Print medians and how many times as long the others take as the first."""
    print(f"\n{title}\n{'':44}  {'ms each':>9}  {'per s':>8}  {'times ours':>10}")
    ours = next(iter(times.values()))
    for name, each in times.items():
        ratio = statistics.median(theirs / own for theirs, own in zip(each, ours, strict=True))
        median = statistics.median(each)
        print(f"{name:44}  {1000 * median:9.2f}  {1 / median:8.1f}  {ratio:10.2f}")
    for name, modules in (lacking or {}).items():
        print(f"{name:44}  not installed: {modules}")


def in_child(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a function in a process of its own; return its result and the peak of resident memory in MiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_child, function, arguments).result()


def _child(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result = function(*arguments)
    # not getrusage: across exec that keeps the peak of the process which started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return result, int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget(files: Sequence[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def ours(path: Path, number: int) -> peers.Turn:
    """Return our loader of so many patches in batches of two."""
    data = opened(path, Patches(PATCH, per_epoch=number, foreground=1.0))
    return lambda: sum(len(batch["image"]) for batch in data.train_dataloader())


def patches(folder: Path) -> None:
    """Compare foreground patches without augmentation, and memory for several numbers of subjects."""
    two, four, eight = (manifest(folder, number) for number in (2, 4, 8))
    files = pairs(four)
    arms = {
        "ours": ours(four, 200),
        "MONAI CacheDataset, tuned": peers.monai_loader(files, PATCH, WINDOW_HU, "tuned"),
        "MONAI CacheDataset, as in its tutorials": peers.monai_loader(files, PATCH, WINDOW_HU, "cached"),
        "MONAI Dataset, no cache": peers.monai_loader(files, PATCH, WINDOW_HU, "uncached"),
        "TorchIO Queue": peers.torchio_queue(files, PATCH, transforms()),
    }
    absent = {}
    if lacking := peers.lacking(*peers.NNUNET):
        absent["nnU-Net's loader"] = lacking
    else:
        plans = peers.nnunet(SPACING_MM[0], PATCH, NAMES)
        peers.nnunet_prepare(files, folder / "nnunet", plans)
        arms["nnU-Net's loader"] = peers.nnunet_loader(folder / "nnunet", plans, augmented=False, batches=10)
    times = seconds_each(arms)
    many = _linked(eight, 64)
    times["ours, not in the page cache"] = [in_child(_cold, eight)[0] for _ in range(TURNS)]
    show(f"patches: {PATCH[0]}^3 on foreground from four volumes {SHAPE}, as batches", times, absent)
    print(f"\n{'peak of resident memory, MiB':44}  {'2 subjects':>10}  {'8':>10}  {'64':>10}")
    for name, draw, paths in (("ours", _ours, (two, eight, many)), ("MONAI CacheDataset, tuned", _monai, (two, eight))):
        print(f"{name:44}  " + "  ".join(f"{in_child(draw, path)[1]:10.0f}" for path in paths))


def _cold(path: Path) -> float:
    cut = Patches(PATCH, foreground=1.0)
    cases = opened(path, cut).opened["train"]
    dataset, times = PatchDataset(cases, cut), []
    os.sync()  # what is not written yet cannot be forgotten
    forget([file for case in cases for file in case.prepared.folder.glob("*.npy")])
    for n in range(len(cases)):  # each patch is of another case, so nothing has been read before
        begin = time.perf_counter()
        collate([dataset[0, n]])
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _ours(path: Path) -> None:
    ours(path, 400)()


def _monai(path: Path) -> None:
    peers.monai_loader(pairs(path), PATCH, WINDOW_HU, "tuned")()


def formats(folder: Path) -> None:
    """Compare what a store could be: size, and time of a patch of image and label."""
    prepared = opened(manifest(folder, 2), Patches(PATCH)).opened["train"][0].prepared
    arrays = {"image": np.array(prepared.image()[0]), "label": np.array(prepared.label())}
    corners = np.random.default_rng(0).integers(np.subtract(prepared.shape, PATCH).astype(int), size=(40, 3)).tolist()
    crops = [tuple(slice(a, a + size) for a, size in zip(corner, PATCH, strict=True)) for corner in corners]
    stores = {
        "memory map (.npy)": ("numpy", _npy_store),
        "chunks, Blosc2 as nnU-Net": ("blosc2", peers.blosc_store),
        "chunks, zarr": ("zarr", peers.zarr_store),
        "chunks, HDF5": ("h5py", peers.hdf5_store),
        "chunks, .npz": ("numpy", peers.npz_store),
    }
    warm, cold, lacking, sizes = {}, {}, {}, {}
    with TemporaryDirectory(dir=folder) as scratch:
        for name, (module, store) in stores.items():
            if missing := peers.lacking(module):
                lacking[name] = missing
                continue
            (here := Path(scratch, str(len(warm)))).mkdir()
            read = store(here, arrays)
            files = [file for file in here.rglob("*") if file.is_file()]
            sizes[name] = sum(file.stat().st_size for file in files) / 2**20
            warm[name] = partial(_read_all, read, crops, [])
            cold[f"{name}, cold"] = partial(_read_all, read, crops[:10], files)
        os.sync()
        times = seconds_each(warm)
        show("formats: image (float16) and label of a patch, as stored", times | seconds_each(cold), lacking)
    print("MiB a volume: " + "; ".join(f"{name} {size:.0f}" for name, size in sizes.items()))


def _npy_store(folder: Path, arrays: dict[str, np.ndarray]) -> peers.Read:
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", array)
    return lambda crop: [np.array(np.load(folder / f"{key}.npy", mmap_mode="r")[crop]) for key in arrays]


def _read_all(read: peers.Read, crops: Sequence[peers.Crop], files: Sequence[Path]) -> int:
    for crop in crops:
        forget(files)
        read(crop)
    return len(crops)


def augment(folder: Path) -> None:
    """Compare nnU-Net's default augmentation, of patches in memory and from the store."""
    path = manifest(folder, 4)
    devices = ["cuda"] if torch.cuda.is_available() else []
    lacking = peers.lacking(*peers.NNUNET)
    memory = {"ours": _ours_in_memory("cpu", 40, 1), **{f"ours, {d}": _ours_in_memory(d, 80, 8) for d in devices}}
    stored = {"ours": _ours_augmented(path, 40)}
    if not lacking:
        memory["batchgeneratorsv2 as nnU-Net uses it"] = peers.nnunet_in_memory(PATCH, 40)
        plans = peers.nnunet(SPACING_MM[0], PATCH, NAMES)
        peers.nnunet_prepare(pairs(path), folder / "nnunet", plans)
        stored["nnU-Net's loader"] = peers.nnunet_loader(folder / "nnunet", plans, augmented=True, batches=20)
    absent = {"nnU-Net": lacking} if lacking else None
    show(f"augment: nnU-Net's default, 1x{PATCH[0]}^3, patches cut from memory", seconds_each(memory), absent)
    show("augment: the same, patches from the store", seconds_each(stored), absent)


def _ours_in_memory(device: str, patches: int, batch_size: int) -> peers.Turn:
    change = BatchAugmentation()
    spacing = np.array(SPACING_MM)
    largest = change.margin(PATCH, spacing[None])
    image, label = torch.randn(1, *largest, device=device), torch.randint(0, 26, largest, device=device).short()
    seeds = itertools.count()

    def turn() -> int:
        for _ in range(patches // batch_size):
            chosen = list(itertools.islice(seeds, batch_size))
            cuts = np.max([change.margin_of(seed, PATCH, spacing) for seed in chosen], axis=0)
            inner = tuple(slice((a - b) // 2, (a + b) // 2) for a, b in zip(largest, cuts.tolist(), strict=True))
            batch = _batch(image[:, *inner], label[inner], chosen)
            float(change(batch, PATCH, [])["image"][0, 0, 0, 0, 0])  # a GPU works on while we go on
        return patches // batch_size * batch_size

    return turn


def _batch(image: torch.Tensor, label: torch.Tensor, seeds: Sequence[int]) -> Batch:
    count, rows = len(seeds), len(NAMES) + 1
    return {
        "image": image.repeat(count, 1, 1, 1, 1),
        "label": label.repeat(count, 1, 1, 1),
        "states": torch.zeros(count, rows, len(NAMES), dtype=torch.int8),
        "drawn": torch.ones(count, rows, len(NAMES), dtype=torch.bool),
        "background": torch.zeros(count, rows, dtype=torch.int8),
        "spacing_mm": torch.tensor([SPACING_MM] * count),
        "affine": torch.eye(4).repeat(count, 1, 1),
        "index": torch.arange(count),
        "subject": ["synthetic"] * count,
        "seed": torch.tensor(seeds),
    }


def _ours_augmented(path: Path, patches: int) -> peers.Turn:
    change = BatchAugmentation()
    cut = Patches(PATCH, per_epoch=10**6, foreground=1.0)
    dataset = PatchDataset(opened(path, cut).opened["train"], cut, cut=change.margin_of)
    numbers = itertools.count()

    def turn() -> int:
        for n in itertools.islice(numbers, patches):
            change(collate([dataset[0, n]]), PATCH, [])
        return patches

    return turn


def open_many(folder: Path) -> None:
    """Open as many prepared subjects as AbdomenAtlas has: every file and every store is a link to one of four."""
    print(f"\n{f'open: {SUBJECTS} subjects, prepared before':44}  {'s':>9}  {'s, batch':>9}  {'peak, MiB':>9}")
    for name, masks in {"a label map each": False, f"{len(NAMES)} masks each": True}.items():
        path = _linked(manifest(folder, 4, SMALL, masks=masks), SUBJECTS)
        (opening, first), peak = in_child(_open, path)
        print(f"{name:44}  {opening:9.1f}  {first:9.2f}  {peak:9.0f}")
    print(f"{'(the libraries alone)':44}  {'':9}  {'':9}  {in_child(int)[1]:9.0f}")


def _linked(few: Path, number: int) -> Path:
    stores = [folder for folder, _ in prepare_all(Manifest(few).cases(), transforms())]
    path = links(few, number)
    for n, case in enumerate(Manifest(path).cases()):
        store = store_root() / store_key(case, transforms())
        if not store.is_dir():
            store.mkdir()
            for file in stores[n % len(stores)].iterdir():
                (store / file.name).hardlink_to(file)
    return path


def _open(path: Path) -> tuple[float, float]:
    begin = time.perf_counter()
    data = opened(path, Patches((32, 32, 32), per_epoch=100, foreground=1.0))
    opening = time.perf_counter() - begin
    next(iter(data.train_dataloader()))
    return opening, time.perf_counter() - begin - opening


def prepare(folder: Path) -> None:
    """Measure the memory that many masks of a large scan take, and compare the throughput with nnU-Net's."""
    large = manifest(folder, 1, LARGE, FINE_MM, masks=True)
    print(f"\n{f'prepare: {len(NAMES)} masks of {LARGE}':44}  {'s':>9}  {'peak, MiB':>9}")
    for name, spacing_mm in {"on its own grid": None, "resampled to 1.5 mm": 1.5}.items():
        took, peak = in_child(_prepare, large, spacing_mm)
        print(f"{name:44}  {took:9.1f}  {peak:9.0f}")
    path = manifest(folder, 2, SHAPE, COARSE_MM)
    arms: dict[str, peers.Turn] = {"ours": partial(_prepare_all, path, 1.5)}
    if lacking := peers.lacking(*peers.NNUNET):
        absent = {"nnU-Net": lacking}
    else:
        absent, plans = None, peers.nnunet(1.5, PATCH, NAMES)
        arms["nnU-Net"] = partial(_nnunet_prepare, pairs(path), plans)
    show(f"prepare: {SHAPE} at {COARSE_MM} mm to 1.5 mm, cases", seconds_each(arms, turns=3), absent)


def _prepare(path: Path, spacing_mm: float | None) -> float:
    begin = time.perf_counter()
    _prepare_all(path, spacing_mm)
    return time.perf_counter() - begin


def _prepare_all(path: Path, spacing_mm: float | None) -> int:
    former = os.environ["LIGHTNING_ATLAS_CACHE"]
    with TemporaryDirectory(dir=path.parent) as cache_folder:
        os.environ["LIGHTNING_ATLAS_CACHE"] = cache_folder
        made = prepare_all(Manifest(path).cases(), transforms(spacing_mm), processes=1)
    os.environ["LIGHTNING_ATLAS_CACHE"] = former
    return sum(new for _, new in made)


def _nnunet_prepare(files: peers.Files, plans: tuple[Any, Any, dict[str, Any]]) -> int:
    with TemporaryDirectory(dir=Path(files[0]["image"]).parent) as scratch:
        peers.nnunet_prepare(files, Path(scratch), plans)
    return len(files)


def order(folder: Path) -> None:
    """Hash a thousand samples for several numbers of workers and ranks."""
    cut = Patches((16, 16, 16), per_epoch=1000, jitter=0.5)
    cases = opened(manifest(folder, 4, SMALL), cut).opened["train"]
    dataset = PatchDataset(cases, cut, [RandomGamma(), RandomNoise()])
    print(f"\norder: {cut.per_epoch} samples with random changes, SHA-256")
    found = set()
    for workers, start in ((0, None), (1, "fork"), (3, "fork"), (3, "spawn")):
        for ranks in (1, 2):
            digest = _order(dataset, workers, start, ranks)
            name = f"{workers} workers ({start or 'none'}), ranks {ranks}"
            print(f"{name:44}  {digest[:24]}")
            found.add(digest)
    print("all equal" if len(found) == 1 else "NOT EQUAL")


def _order(dataset: PatchDataset, workers: int, start: str | None, ranks: int) -> str:
    settings: dict[str, Any] = {"num_workers": workers, "collate_fn": collate, "multiprocessing_context": start}
    samplers = [AtlasSampler(dataset, 4, rank, ranks) for rank in range(ranks)]
    loaders = [DataLoader(dataset, sampler.share, sampler=sampler, **settings) for sampler in samplers]
    digest = hashlib.sha256()
    for part in itertools.chain.from_iterable(zip(*loaders, strict=True)):
        for n, key in itertools.product(range(len(part["image"])), ("image", "label", "affine", "index", "seed")):
            digest.update(part[key][n].numpy().tobytes())
    return digest.hexdigest()


SECTIONS = {
    "patches": patches,
    "formats": formats,
    "augment": augment,
    "open": open_many,
    "prepare": prepare,
    "order": order,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    if strange := sorted(set(chosen.sections) - set(SECTIONS)):
        sys.exit(f"no section is called {', '.join(strange)}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as scratch:
        folder = (chosen.folder or Path(scratch)).absolute()
        os.environ["LIGHTNING_ATLAS_CACHE"] = str(folder / "cache")
        for section in chosen.sections or SECTIONS:
            SECTIONS[section](folder)


if __name__ == "__main__":
    main()
