"""DeepLesion: slices with marked lesions as 16-bit PNG, with the slices about them, and a table of boxes.

Source: Yan et al. 2018, https://doi.org/10.1117/1.JMI.5.3.036501, and the table `DL_info.csv` of the release; its
coordinates count from 1, the values of the pictures are 32768 above Hounsfield units. Or the same as COCO-like JSON:
https://github.com/urmagicsmine/MVP-Net (data/DeepLesion), whose 22,496, 4,793 and 4,831 slices are all 32,120: lesions
that the table calls possibly noisy are among them, so they are taken in either form. That the numbers of slices run
downwards is inferred: so do the positions in the body that both say of them.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_atlas.data.cases import Split
from lightning_atlas.data.slab import Slab, numbered, plane_number
from lightning_atlas.data.sources.layouts.listing import SPLIT_NAMES, folders, visible
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import read_json, read_rows

TABLE = "DL_info.csv"
SPLITS: dict[str, Split] = {"1": "train", "2": "val", "3": "test"}
PLANES, INTERVAL_MM, OFFSET = 9, 2.5, -32768.0
MIDDLE = PLANES // 2
WHOLE, KEYS = "Images_png", "Key_slices"
"""Folders of the release: all slices about a marked one, or the marked ones only."""
BEGINNING = 4096
"""Bytes of a JSON file in which its first slice stands."""


class Slice(NamedTuple):
    """A slice with lesions.

    Args:
        series: Name of the folder of its scan, `000001_01_01`.
        number: Name of its file, `109`.
        split: Its split.
        spacing_mm: Along i, j and between slices.
        boxes: In voxels of its slab.
    """

    series: str
    number: str
    split: Split
    spacing_mm: tuple[float, float, float]
    boxes: tuple[tuple[float, ...], ...]


def is_deeplesion(path: Path) -> bool:
    """Tell whether there is the table of the release, or JSON files of slices with their interval."""
    return _table(path) is not None or bool(_documents(path))


def read_deeplesion(path: Path) -> LayoutResult:
    """List the slices with lesions; each becomes nine planes at a common interval.

    Raises:
        ValueError: A line of the table cannot be read, or none of its pictures is there.
    """
    result = LayoutResult("deeplesion", target_names=("lesion",))
    table = _table(path)
    slices = _from_table(table, result) if table else [one for file in _documents(path) for one in _from_json(file)]
    if flat := sum(not _extends(box) for one in slices for box in one.boxes):
        result.notes.append(f"{flat} boxes without an extent are left out")
    root = path.parent if path.is_file() else path
    places = [place for folder in (root, root.parent) for place in _places(folder)]
    lost = alone = 0
    for one in slices:
        files = [place / one.series / f"{one.number}.png" for place in places]
        files += [place / f"{one.series}_{one.number}.png" for place in places if place.name == KEYS]
        image = next((file for file in files if file.is_file()), None)
        if image is None:
            lost += 1
            continue
        slab = Slab(one.spacing_mm, PLANES, INTERVAL_MM, OFFSET)
        alone += slab.spacing_mm[2] > 0 and _is_alone(image)
        facts = {"modality": "CT", "patient": one.series.partition("_")[0], "slab": slab}
        boxes = tuple(box for box in one.boxes if _extends(box))
        result.add(f"{one.series}_{one.number}", one.split, image, {"boxes": boxes}, **facts)
    if slices and lost == len(slices):
        first = f"{WHOLE}/{slices[0].series}/{slices[0].number}.png"
        raise ValueError(f"{path}: there is no picture {first}; unzip the release's {WHOLE} beside its table")
    if lost:
        result.notes.append(f"{lost} of {len(slices)} slices have no picture here and are left out")
    unknown = sum(case.slab is not None and not case.slab.spacing_mm[2] > 0 for case in result.cases)
    if unknown:
        result.notes.append(f"of {unknown} slices the interval is not known: their planes are nine times the slice")
    if alone:
        told = f"of {alone} slices no neighbour is here: their planes are nine times the slice"
        result.notes.append(f"{told}; the others are in {WHOLE} of the release")
    return result


def _table(path: Path) -> Path | None:
    file = path if path.is_file() else path / TABLE
    return file if file.name == TABLE and file.is_file() else None


def _documents(path: Path) -> list[Path]:
    near = [path, *(folder for folder in folders(path) if folder.name.lower() in ("annotation", "annotations"))]
    files = [path] if path.is_file() else [file for folder in near for file in visible(folder)]
    return [file for file in files if file.suffix.lower() == ".json" and _has_intervals(file)]


def _has_intervals(file: Path) -> bool:
    with file.open("rb") as stream:
        beginning = stream.read(BEGINNING)
    return b'"slice_intv"' in beginning and b'"slice_no"' in beginning


def _places(folder: Path) -> Iterator[Path]:
    for name in (WHOLE, KEYS):
        yield from (folder / name / name, folder / name)
    yield folder


def _is_alone(image: Path) -> bool:
    number = plane_number(image)
    return not any(numbered(image, number + way).is_file() for way in (-1, 1))


def _from_table(table: Path, result: LayoutResult) -> list[Slice]:
    found: dict[str, Slice] = {}
    noisy = 0
    for line, row in read_rows(table):
        try:
            noisy += int(row["Possibly_noisy"]) > 0
            x0, y0, x1, y1 = (float(each) - 1 for each in row["Bounding_boxes"].split(","))
            i, j, k = (float(each) for each in row["Spacing_mm_px_"].split(","))
            series, _, number = row["File_name"].removesuffix(".png").rpartition("_")
            one = Slice(series, number, SPLITS[row["Train_Val_Test"]], (i, j, k), (_box(x0, y0, x1, y1),))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{table}, line {line}, is not as the release has it: {error}") from error
        before = found.get(row["File_name"])
        found[row["File_name"]] = one if before is None else one._replace(boxes=before.boxes + one.boxes)
    if noisy:
        result.notes.append(f"{noisy} lesions that the table calls possibly noisy are taken, as in its JSON form")
    return list(found.values())


def _from_json(file: Path) -> list[Slice]:
    document = read_json(file)
    words = file.stem.lower().split("_")
    named: list[Split] = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
    split = named[0] if named else "train"
    boxes: dict[Any, list[tuple[float, ...]]] = {}
    try:
        for entry in document["annotations"]:
            x, y, width, height = map(float, entry["bbox"])
            boxes.setdefault(entry["image_id"], []).append(_box(x, y, x + width, y + height))
        return [
            Slice(
                *_series_and_number(entry["file_name"]),
                split,
                (float(entry["spacing"]), float(entry["spacing"]), _interval(entry["slice_intv"])),
                tuple(boxes.get(entry["id"], ())),
            )
            for entry in document["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not as MVP-Net has it: an entry lacks or breaks {error}") from error


def _series_and_number(name: str) -> tuple[str, str]:
    series, _, file = name.replace("\\", "/").rpartition("/")
    return series.rpartition("/")[2], file.removesuffix(".png")


def _interval(told: float | None) -> float:
    return float(told) if told is not None and math.isfinite(told) else 0.0


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
    return x0, y0, float(MIDDLE), x1, y1, MIDDLE + 1.0, 0.0


def _extends(box: tuple[float, ...]) -> bool:
    return box[0] < box[3] and box[1] < box[4]


DEEPLESION = Layout(
    "deeplesion",
    f"{TABLE} (or annotation/deeplesion_*.json) beside {WHOLE}/SERIES/NUMBER.png",
    is_deeplesion,
    read_deeplesion,
)
