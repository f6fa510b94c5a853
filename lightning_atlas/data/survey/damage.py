"""Look at every file of a case, header first, and say in one line each what is wrong with it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lightning_atlas.data.cases import Case
from lightning_atlas.data.formats import (
    BadFileError,
    Container,
    Header,
    displacement_voxels,
    finite,
    is_picture,
    one_grid,
    open_container,
    segments,
    whole_numbers,
)
from lightning_atlas.data.formats.nodule import ENDING as CROP
from lightning_atlas.data.labels.grids import described
from lightning_atlas.data.store.slabs import read_slab

ROUNDING_VOXELS = 1e-6
FIRST_FEW = 12
MANY_VALUES = 2**16


@dataclass(frozen=True)
class Defect:
    """A file that cannot be used as it is.

    Args:
        file: The file.
        found: What is wrong, to be read after the file's name.
        remedy: What to do about it.
        subject: Whose file it is.
    """

    file: Path
    found: str
    remedy: str
    subject: str = ""

    def __str__(self) -> str:
        return " ".join(f"{self.file} {self.found}; {self.remedy}".split())


@dataclass(frozen=True)
class Note:
    """A file that is sound, with something that its owner may want to know.

    Args:
        file: The file.
        found: What is unusual, to be read after the file's name.
        subject: Whose file it is.
    """

    file: Path
    found: str
    subject: str = ""

    def __str__(self) -> str:
        return " ".join(f"{self.file} {self.found}".split())


Finding = Defect | Note


@dataclass
class Inspection:
    """What was found in one case.

    Args:
        subject: The case's subject.
        findings: In the order of the files: headers, then voxels.
        digests: Channel -> digest of its intensities; of sound files only.
    """

    subject: str
    findings: list[Finding] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        """Whether there is a defect."""
        return any(isinstance(finding, Defect) for finding in self.findings)

    def defect(self, file: Path, found: str, remedy: str) -> None:
        """Add a defect."""
        self.findings.append(Defect(file, found, remedy, self.subject))

    def note(self, file: Path, found: str) -> None:
        """Add a note."""
        self.findings.append(Note(file, found, self.subject))

    def opened(self, file: Path, labels: bool) -> Container | None:
        """Open a file, or say why that is impossible."""
        try:
            container = open_container(file, labels)
        except BadFileError as error:
            self.defect(error.file, error.found, error.remedy)
            return None
        for remark in container.header.remarks:
            self.note(file, remark)
        return container


@dataclass
class Intensities:
    """What is remembered of a scan's intensities as they are read.

    Args:
        container: Where they are read.
        digest: Of all of them.
        low: The least.
        high: The largest.
    """

    container: Container
    digest: Any
    low: float = np.inf
    high: float = -np.inf


class Seen:
    """Watches files being read: of each scan a digest and the range, of each drawing the values."""

    def __init__(self) -> None:
        self.scans: dict[Path, Intensities] = {}
        self.drawings: dict[Path, set[int]] = {}

    def __call__(self, container: Container, voxels: Shaped[np.ndarray, " voxels"]) -> None:
        """Take note of some voxels: label values if they are integers."""
        if voxels.dtype.kind == "i":
            self.drawings.setdefault(container.file, set()).update(_occurring(voxels))
            return
        scan = self.scans.get(container.file)
        if scan is None or scan.container is not container:  # else it is the next part
            scan = Intensities(container, hashlib.blake2b(str(container.sizes).encode(), digest_size=16))
            self.scans[container.file] = scan
        scan.low, scan.high = min(scan.low, float(voxels.min())), max(scan.high, float(voxels.max()))
        scan.digest.update(voxels.data)


def inspect_case(case: Case, seen: Seen | None = None) -> Inspection:
    """Look at every file of a case; nothing is raised for what is wrong with them.

    Args:
        case: Its headers are read, then its voxels, once and a chunk at a time.
        seen: Watched the files being read to their ends: those are not read again.
    """
    inspection, seen = Inspection(case.subject), Seen() if seen is None else seen
    scans = _open_all(case.channels, inspection, labels=False)
    drawn = _open_all({str(path): path for path in drawings(case)}, inspection, labels=True)
    _check_channels(case, scans, drawn, inspection)
    whole = [
        container for channel, container in scans.items() if _read_intensities(channel, container, inspection, seen)
    ]
    found = {container: _read_values(container, inspection, seen) for container in drawn.values()}
    sound = {container: values for container, values in found.items() if values is not None}
    _check_values(case, {container.file: values for container, values in sound.items()}, inspection)
    if whole:
        for container in whole[1:]:
            _check_grid(container, "ScalarImage", whole[0], inspection)
        for container in sound:
            _check_grid(container, "LabelMap", whole[0], inspection)
        _check_boxes(case, whole[0], inspection)
        _check_neighbours(case, inspection, seen)
    return inspection


def drawings(case: Case) -> list[Path]:
    """Return the files in which somebody drew, each once."""
    files = [*([case.label] if case.label else []), *(mark.file for mark in case.masks.values())]
    return list(dict.fromkeys([*files, *(place.mask for place in case.drawn_on if place.mask)]))


def is_crop(path: Path) -> bool:
    """Tell whether a file is a nodule of LIDC, which holds a scan and, in layers, what each reader drew on it."""
    return path.name.lower().endswith(CROP)


def _open_all(files: Mapping[str, Path], inspection: Inspection, labels: bool) -> dict[str, Container]:
    opened = {name: inspection.opened(path, labels) for name, path in files.items()}
    return {name: container for name, container in opened.items() if container is not None}


def _is_segmentation(path: Path) -> bool:
    return path.name.lower().endswith(".seg.nrrd")


def _check_channels(
    case: Case, scans: dict[str, Container], drawn: dict[str, Container], inspection: Inspection
) -> None:
    for container in scans.values():
        if container.header.channels > 1 and not is_picture(container.file):
            found = f"holds {container.header.channels} channels, where one is expected"
            inspection.defect(container.file, found, "save each channel as a file of its own, or choose one")
    layers: dict[Path, set[int]] = {path: {0} for path in drawings(case)}
    for mark in case.marks.values():
        layers[mark.file].add(mark.layer)
    for container in drawn.values():
        held, asked = container.header.channels, max(layers[container.file])
        layered = _is_segmentation(container.file) or is_crop(container.file)
        if asked >= held or (held > 1 and asked == 0 and not layered):
            found = f"holds {held} layers, where {asked + 1} are expected"
            inspection.defect(container.file, found, "save one volume of labels, or name the layer of each structure")


def _check_grid(container: Container, kind: str, scan: Container, inspection: Inspection) -> None:
    header, expected = container.header, scan.header
    both = f"{described(header.shape, header.affine)}; {scan.file}: {described(expected.shape, expected.affine)}"
    if _is_segmentation(container.file):
        if not _overlap(header, expected):
            found = f"lies wholly outside its scan: {both}"
            inspection.defect(container.file, found, "pair it with the scan that it was drawn on")
        return
    displacement = displacement_voxels(expected.affine, header.affine, expected.shape)
    if header.shape != expected.shape or not one_grid(displacement):
        found = f"lies on another grid than its scan: {both}"
        name, target = container.file.name, scan.file.name
        remedy = f"torchio.Resample('{target}')(torchio.{kind}('{name}')).save('{name}') puts it on the scan's"
        inspection.defect(container.file, found, remedy)
    elif displacement[1] > ROUNDING_VOXELS:
        inspection.note(container.file, f"is off its scan's grid by {displacement[1]:.1g} voxels; the scan's is taken")


def _overlap(header: Header, expected: Header) -> bool:
    corners = np.array([[*corner, 1] for corner in product(*((-0.5, size - 0.5) for size in header.shape))])
    places = (corners @ (np.linalg.inv(expected.affine) @ header.affine).T)[:, :3]
    return bool(np.all(places.max(axis=0) > -0.5) and np.all(places.min(axis=0) < np.array(expected.shape) - 0.5))


def _check_boxes(case: Case, scan: Container, inspection: Inspection) -> None:
    shape = scan.header.shape if case.slab is None else (*scan.header.shape[:2], case.slab.planes)
    for box in case.boxes:
        begin, end = box[:3], box[3:6]
        if not all(0 <= low < high <= size for low, high, size in zip(begin, end, shape, strict=True)):
            found = f"has the box {tuple(box)}, but {'x'.join(map(str, shape))} voxels"
            inspection.defect(scan.file, found, "boxes are (i0, j0, k0, i1, j1, k1, class) in voxels, ends excluded")


def _check_neighbours(case: Case, inspection: Inspection, seen: Seen) -> None:
    """Read the other planes of a slab, unless they were seen."""
    middle = next(iter(case.channels.values()))
    if case.slab is None or seen.scans.keys() >= set(case.slab.files(middle)):
        return
    try:
        read_slab(case.slab, middle, seen)
    except BadFileError as error:
        inspection.defect(error.file, error.found, error.remedy)


def _read_intensities(channel: str, container: Container, inspection: Inspection, seen: Seen) -> bool:
    """Return whether they could be read."""
    file = container.file
    try:
        for chunk in container.values() if file not in seen.scans else ():
            seen(container, finite(file, chunk))
    except BadFileError as error:
        inspection.defect(error.file, error.found, error.remedy)
        return False
    inspection.digests[channel] = seen.scans[file].digest.hexdigest()
    if seen.scans[file].low == seen.scans[file].high:
        inspection.note(file, f"is {seen.scans[file].low:g} in every voxel")
    return True


def _read_values(container: Container, inspection: Inspection, seen: Seen) -> set[int] | None:
    """Return the label values that occur."""
    file = container.file
    try:
        for chunk in container.values() if file not in seen.drawings else ():
            seen(container, whole_numbers(file, chunk))
    except BadFileError as error:
        inspection.defect(error.file, error.found, error.remedy)
        return None
    return seen.drawings[file]


def _occurring(values: np.ndarray) -> list[int]:
    low, high = int(values.min()), int(values.max())
    if high - low < MANY_VALUES:
        return (np.flatnonzero(np.bincount(values - low)) + low).tolist()
    return np.unique(values).tolist()


def _check_values(case: Case, found: dict[Path, set[int]], inspection: Inspection) -> None:
    empty = bool(found) and not any(each > 0 and each != case.ignore_value for path in found for each in found[path])
    for path, values in found.items():
        named = _named(case, path, inspection)
        strange = sorted(each for each in values if each < 0 or (path == case.label and each > 0))
        strange = [each for each in strange if each not in named]
        if strange:
            empty = False
            more = f" and {len(strange) - FIRST_FEW} more" if len(strange) > FIRST_FEW else ""
            found_now = f"has the values {', '.join(map(str, strange[:FIRST_FEW]))}{more}, which no name has"
            inspection.defect(path, found_now, "name them in values, or set ignore_value, or correct the file")
    if empty:
        rest = f", as are its {len(found) - 1} other files" if len(found) > 1 else ""
        inspection.note(next(iter(found)), f"is empty{rest}: no voxel above 0")


def _named(case: Case, path: Path, inspection: Inspection) -> set[int | None]:
    named: set[int | None] = {case.ignore_value, *(mark.value for mark in case.marks.values() if mark.file == path)}
    if _is_segmentation(path):
        try:
            named |= {mark.value for mark in segments(path).values()}
        except BadFileError as error:
            inspection.defect(error.file, error.found, error.remedy)
    return named
