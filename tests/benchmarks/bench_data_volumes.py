"""Synthetic volumes for `bench_data.py`, and manifests of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

NAMES = tuple(f"vertebrae_{part}{n}" for part, most in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, most + 1))
NAMES += ("sacrum",)
SHAPE, LARGE, SMALL = (320, 320, 200), (512, 512, 300), (48, 48, 48)
SPACING_MM, FINE_MM, COARSE_MM = (1.5, 1.5, 1.5), (0.8, 0.8, 1.0), (1.2, 1.2, 2.0)


def volume(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a body of noisy soft tissue with ellipsoids, in HU, and the numbers of the ellipsoids."""
    random = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in shape)]
    image = random.normal(0, 15, shape).astype(np.float32)
    image += np.where(axes[0] ** 2 + axes[1] ** 2 < 0.8, 40, -1000)
    label = np.zeros(shape, dtype=np.uint8)
    for value in range(1, len(NAMES) + 1):
        middle, radii = random.uniform(-0.55, 0.55, 3), random.uniform(0.08, 0.25, 3)
        inside = sum(((axis - m) / r) ** 2 for axis, m, r in zip(axes, middle, radii, strict=True)) < 1
        label[inside] = value
        image[inside] += 4 * value
    return image.astype(np.int16), label


def manifest(
    folder: Path,
    number: int,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: Sequence[float] = SPACING_MM,
    masks: bool = False,
) -> Path:
    """Write so many volumes where they are not yet, and return a manifest of them.

    Args:
        folder: Holds the volumes of all shapes.
        number: How many.
        shape: Voxels along i, j, k.
        spacing_mm: Voxel size along i, j, k.
        masks: A mask for each structure in place of one label map.
    """
    folder = folder / f"{'x'.join(map(str, shape))}-{spacing_mm[0]:g}{'-masks' * masks}"
    folder.mkdir(parents=True, exist_ok=True)
    subjects = [_told(f"s{n}", "", masks) for n in range(number)]
    for seed, told in enumerate(subjects):
        if not all((folder / file).is_file() for file in _files(told)):
            _write(folder, told, volume(seed, shape), np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1]))
    return _listed(folder / f"of{number}.json", subjects)


def links(few: Path, number: int) -> Path:
    """Return a manifest of many subjects, each file of which is a link to one of those of a manifest of few."""
    folder = few.parent / f"links-{number}"
    path = folder / "manifest.json"
    if path.is_file():
        return path
    folder.mkdir(exist_ok=True)
    given = _subjects(few)
    masks = "masks" in given[0]
    subjects = [_told(f"s{n}", given[n % len(given)]["subject"], masks) for n in range(number)]
    for n, told in enumerate(subjects):
        told["ignore_value"] = 256 + n  # no voxel has it, but it makes a store of its own of every subject
        for new, old in zip(_files(told), _files(given[n % len(given)]), strict=True):
            (folder / new).hardlink_to(few.parent / old)
    return _listed(path, subjects)


def pairs(path: Path) -> list[dict[str, str]]:
    """Return image and label of each subject of a manifest, as the peers want them."""
    return [{key: str(path.parent / told[key]) for key in ("image", "label")} for told in _subjects(path)]


def _told(subject: str, of: str, masks: bool) -> dict[str, Any]:
    stem = f"{subject}-{of}" if of else subject
    drawn = {"masks": {name: f"{stem}_{name}.nii.gz" for name in NAMES}} if masks else {"label": f"{stem}_label.nii.gz"}
    return {"subject": subject, "split": "train", "image": f"{stem}.nii.gz", **drawn}


def _files(told: dict[str, Any]) -> list[str]:
    return [told["image"], *([told["label"]] if "label" in told else told["masks"].values())]


def _write(folder: Path, told: dict[str, Any], arrays: tuple[np.ndarray, np.ndarray], affine: np.ndarray) -> None:
    for file, array in zip(_files(told), _in_files(*arrays, "masks" in told), strict=True):
        nib.Nifti1Image(array, affine).to_filename(folder / file)


def _in_files(image: np.ndarray, label: np.ndarray, masks: bool) -> Iterator[np.ndarray]:
    yield image
    yield from ((label == value).astype(np.uint8) for value in range(1, len(NAMES) + 1)) if masks else (label,)


def _listed(path: Path, subjects: list[dict[str, Any]]) -> Path:
    values = {} if "masks" in subjects[0] else {name: value for value, name in enumerate(NAMES, start=1)}
    document = {"datasets": {"synthetic": {"modality": "CT", "values": values}}, "subjects": subjects}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _subjects(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["subjects"]
