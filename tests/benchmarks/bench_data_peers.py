"""The peers of `bench_data.py`, each set up as its own documentation does."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from torchio.transforms import Compose, Transform

Turn = Callable[[], int]
"""Does some work, and returns for how many patches, samples or cases."""
Files = Sequence[dict[str, str]]
KEYS = ("image", "label")
CROPS = 4
"""Patches of a volume at a time in MONAI's tutorials."""
QUEUE_LENGTH, PER_VOLUME = 16, 8
"""Patches in TorchIO's queue, and those of a volume."""

for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, ".")  # else nnU-Net prints that they are not set


def lacking(*modules: str) -> str:
    """Return which of these modules are not installed."""
    return ", ".join(module for module in modules if find_spec(module) is None)


def monai_loader(files: Files, size: tuple[int, int, int], window: tuple[float, float], kind: str) -> Turn:
    """Return MONAI's loader in batches of two volumes.

    Args:
        files: Image and label of each case.
        size: Of the patches.
        window: Intensities that become -1 and 1.
        kind: `uncached`; `cached`, as in the tutorials of spleen and BTCV; `tuned`, as in the guide to fast training:
            the cache is not copied and holds where foreground is, tensors have no metadata.
    """
    data: Any = import_module("monai.data")
    monai: Any = import_module("monai.transforms")
    steps = [
        monai.LoadImaged(KEYS, image_only=True),
        monai.EnsureChannelFirstd(KEYS),
        monai.Orientationd(KEYS, axcodes="RAS"),
        monai.ScaleIntensityRanged("image", *window, -1, 1, clip=True),
    ]
    known = {}
    if kind == "tuned":
        known = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
        steps += [
            monai.EnsureTyped(KEYS, track_meta=False, dtype=[torch.float32, torch.uint8]),
            monai.FgBgToIndicesd("label"),
        ]
    crop = {"label_key": "label", "spatial_size": size, "pos": 1, "neg": 0, "num_samples": CROPS, **known}
    together = monai.Compose([*steps, monai.RandCropByPosNegLabeld(KEYS, **crop), monai.SelectItemsd(KEYS)])
    if kind == "uncached":
        dataset = data.Dataset(files[:2], together)
    else:
        dataset = data.CacheDataset(files, together, progress=False, copy_cache=kind != "tuned")
    repeats = 8 if kind == "tuned" else 1
    loader = data.DataLoader(dataset, batch_size=2, num_workers=0)
    return lambda: sum(len(batch["image"]) for _ in range(repeats) for batch in loader)


def torchio_queue(files: Files, size: tuple[int, int, int], preprocess: Sequence[Transform]) -> Turn:
    """Return TorchIO's queue with foreground patches, in batches of two."""
    subjects = [tio.Subject(image=tio.ScalarImage(each["image"]), label=tio.LabelMap(each["label"])) for each in files]
    sampler = tio.LabelSampler(size, label_name="label")
    dataset = tio.SubjectsDataset(subjects[:2], Compose(preprocess))
    queue = tio.Queue(dataset, QUEUE_LENGTH, PER_VOLUME, sampler)
    loader = tio.SubjectsLoader(queue, batch_size=2, num_workers=0)
    return lambda: sum(len(batch["image"]["data"]) for batch in loader)


NNUNET = ("nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils", "seaborn", "blosc2", "cc3d", "skimage")
NNUNET += ("dynamic_network_architectures", "sklearn", "pandas", "threadpoolctl")


@cache
def nnunet(spacing_mm: float, size: tuple[int, ...], labels: tuple[str, ...]) -> tuple[Any, Any, dict[str, Any]]:
    """Return the plans, the configuration and the `dataset.json` of a CT dataset, as nnU-Net's planner writes them."""
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(size),
        "spacing": [spacing_mm] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resample,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resample, "is_seg": True, "order": 1},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = {
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 50.0, "std": 60.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
        },
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
    }
    named = {"background": 0, **{label: value for value, label in enumerate(labels, start=1)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": named, "file_ending": ".nii.gz"}
    manager = import_module("nnunetv2.utilities.plans_handling.plans_handler").PlansManager(plans)
    return manager, manager.get_configuration("3d_fullres"), dataset


def nnunet_prepare(files: Files, folder: Path, plans: tuple[Any, Any, dict[str, Any]]) -> None:
    """Preprocess cases and write their stores anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    module = import_module("nnunetv2.preprocessing.preprocessors.default_preprocessor")
    preprocessor = module.DefaultPreprocessor(verbose=False)
    for number, each in enumerate(files):
        preprocessor.run_case_save(str(folder / f"case{number}"), [each["image"]], each["label"], *plans)


def nnunet_transforms(size: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """Return how large a patch nnU-Net cuts, and its default augmentation, without deep supervision."""
    degrees = np.pi / 6
    limits = (-degrees, degrees)
    cut = import_module("nnunetv2.training.data_augmentation.compute_initial_patch_size").get_patch_size(
        size, limits, limits, limits, (0.85, 1.25)
    )
    trainer = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    return tuple(cut.tolist()), trainer.get_training_transforms(size, limits, None, (0, 1, 2), False, [False])


def nnunet_in_memory(size: tuple[int, ...], patches: int) -> Turn:
    """Return nnU-Net's augmentation of patches that are cut from a volume in memory."""
    cut, transforms = nnunet_transforms(size)
    image, label = torch.randn(1, *cut), torch.randint(0, 26, (1, *cut), dtype=torch.int16)

    def turn() -> int:
        with torch.no_grad():
            for _ in range(patches):
                transforms(image=image.clone(), segmentation=label.clone())
        return patches

    return turn


def nnunet_loader(folder: Path, plans: tuple[Any, Any, dict[str, Any]], augmented: bool, batches: int) -> Turn:
    """Return nnU-Net's own loader, which cuts foreground patches from its stores and augments them."""
    manager, configuration, dataset = plans
    size = tuple(configuration.patch_size)
    cut, transforms = nnunet_transforms(size)
    stores = import_module("nnunetv2.training.dataloading.nnunet_dataset").nnUNetDatasetBlosc2(str(folder))
    loader = import_module("nnunetv2.training.dataloading.data_loader").nnUNetDataLoader(
        stores,
        2,
        cut if augmented else size,
        size,
        manager.get_label_manager(dataset),
        oversample_foreground_percent=1.0,
        transforms=transforms if augmented else None,
    )
    return lambda: sum(len(next(loader)["data"]) for _ in range(batches))


Crop = tuple[slice, ...]
Read = Callable[[Crop], list[np.ndarray]]
CHUNK = 64


def zarr_store(folder: Path, arrays: dict[str, np.ndarray]) -> Read:
    """Write chunks by zarr, with its own choice of compression."""
    module: Any = import_module("zarr")
    for key, array in arrays.items():
        module.create_array(str(folder / key), data=array, chunks=(CHUNK,) * 3)
    return lambda crop: [module.open_array(str(folder / key), mode="r")[crop] for key in arrays]


def hdf5_store(folder: Path, arrays: dict[str, np.ndarray]) -> Read:
    """Write chunks by h5py, with the fast one of its compressions."""
    module: Any = import_module("h5py")
    with module.File(folder / "store.h5", "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, chunks=(CHUNK,) * 3, compression="lzf")

    def read(crop: Crop) -> list[np.ndarray]:
        with module.File(folder / "store.h5", "r") as file:
            return [file[key][crop] for key in arrays]

    return read


def blosc_store(folder: Path, arrays: dict[str, np.ndarray]) -> Read:
    """Write chunks by Blosc2, as large and as compressed as nnU-Net's."""
    module: Any = import_module("blosc2")
    module.set_nthreads(1)
    for key, array in arrays.items():
        parameters = {"codec": module.Codec.LZ4HC, "clevel": 5, "nthreads": 1}
        path = str(folder / f"{key}.b2nd")
        module.asarray(array, urlpath=path, chunks=(96, 96, 96), blocks=(32, 32, 32), cparams=parameters)
    threads = {"nthreads": 1}
    paths = [str(folder / f"{key}.b2nd") for key in arrays]
    return lambda crop: [module.open(path, mode="r", dparams=threads, mmap_mode="r")[crop] for path in paths]


def npz_store(folder: Path, arrays: dict[str, np.ndarray]) -> Read:
    """Write chunks into one compressed archive by NumPy alone."""
    for key, array in arrays.items():
        chunks: dict[str, Any] = dict(_chunks(array))
        np.savez_compressed(folder / f"{key}.npz", **chunks)

    def read(crop: Crop) -> list[np.ndarray]:
        found = []
        for key, array in arrays.items():
            patch = np.empty([each.stop - each.start for each in crop], array.dtype)
            with np.load(folder / f"{key}.npz") as archive:
                for corner in _corners(crop):
                    chunk = archive[_named(corner)]
                    low = [max(c * CHUNK, each.start) for c, each in zip(corner, crop, strict=True)]
                    high = [min((c + 1) * CHUNK, each.stop) for c, each in zip(corner, crop, strict=True)]
                    pairs = list(zip(low, high, strict=True))
                    source = tuple(slice(a - c * CHUNK, b - c * CHUNK) for (a, b), c in zip(pairs, corner, strict=True))
                    target = tuple(slice(a - e.start, b - e.start) for (a, b), e in zip(pairs, crop, strict=True))
                    patch[target] = chunk[source]
            found.append(patch)
        return found

    return read


def _chunks(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for corner in _corners(tuple(slice(0, side) for side in array.shape)):
        yield _named(corner), array[tuple(slice(c * CHUNK, (c + 1) * CHUNK) for c in corner)]


def _corners(crop: Crop) -> Iterator[tuple[int, ...]]:
    first = [each.start // CHUNK for each in crop]
    counts = [(each.stop - 1) // CHUNK - low + 1 for each, low in zip(crop, first, strict=True)]
    for offset in np.ndindex(*counts):
        yield tuple(low + step for low, step in zip(first, offset, strict=True))


def _named(corner: tuple[int, ...]) -> str:
    return "-".join(map(str, corner))
