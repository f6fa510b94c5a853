"""What weights expect of an image, and in which ways some data break it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Contract:
    """What weights were trained on. `None` means: not stated.

    Args:
        classes: Names of the classes in the order of the network's outputs, without background.
        modality: `CT`, `MR` or another short name.
        orientation: Axis codes of the voxel grid, such as `RAS`.
        spacing_mm: Voxel size along i, j, k in millimetres.
        normalization: How intensities were taken to the network's range: `window`, `percentiles` or `z-score`.
        window: The intensities that were taken to the ends of `range` (Hounsfield units for CT), or two percentiles.
        range: The intensities that the network saw for the ends of the window.
        channels: Names of the input channels in order.
        mirrored_axes: Axes (of `i`, `j`, `k`) along which training mirrored images.
        overlapping: A voxel may be in several classes: one output for each class and none for the background (sigmoid).
    """

    classes: tuple[str, ...] = ()
    modality: str | None = None
    orientation: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    normalization: str | None = None
    window: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    channels: tuple[str, ...] = ("image",)
    mirrored_axes: tuple[str, ...] = field(default=())
    overlapping: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: fit for JSON and for a checkpoint that is read safely."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Contract":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: A key is not one of the contract's.
        """
        names = {each.name for each in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"a contract has no {', '.join(unknown)}; its keys are {', '.join(sorted(names))}")
        plain: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in values.items()}
        return cls(**plain)

    def to_json(self) -> str:
        """Return one line, as it stands in the header of a weights file."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class Difference:
    """One key in which data are not what the weights expect."""

    key: str
    weights: Any
    data: Any

    def __str__(self) -> str:
        given = "do not say" if self.data is None else f"give {self.data}"
        return f"{self.key}: the weights expect {self.weights}, the data {given}"


COMPARED = ("modality", "orientation", "spacing_mm", "normalization", "window", "range", "channels")
"""Keys whose difference must be meant. Classes may differ: that is what transfer is for."""


def differences(weights: Contract, data: Contract) -> list[Difference]:
    """Return the keys that the weights state and in which the data disagree or say nothing.

    Numbers agree to one part in a thousand.
    """
    pairs = ((key, getattr(weights, key), getattr(data, key)) for key in COMPARED)
    return [Difference(key, ours, theirs) for key, ours, theirs in pairs if not _agree(ours, theirs)]


WITHOUT_SIDE = re.compile("heart_(ventricle|atrium)|atrial_appendage")
"""A mirrored left ventricle of the heart is a left ventricle, on the other side."""


def side_pairs(classes: Sequence[str]) -> list[tuple[int, int]]:
    """Return the positions of classes that are each other's mirror image by name, as `hip_left` and `hip_right`."""
    places = {name: place for place, name in enumerate(classes)}
    images = ((place, places.get(mirror_image(name), place)) for name, place in places.items())
    return [(place, image) for place, image in images if place < image]


def lone_sides(classes: Sequence[str]) -> list[str]:
    """Return the classes that have a side by name, and whose mirror image is no class."""
    sided = (name for name in classes if re.search("(?<![a-z])(left|right)(?![a-z])", name))
    return [name for name in sided if mirror_image(name) not in classes and not WITHOUT_SIDE.search(name)]


def mirror_image(name: str) -> str:
    """Return a name with `left` and `right` exchanged."""
    if WITHOUT_SIDE.search(name):
        return name
    return re.sub("left|right", lambda side: "right" if side.group() == "left" else "left", name)


def _agree(ours: Any, theirs: Any) -> bool:
    if ours is None:
        return True
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(_agree(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return abs(ours - theirs) <= 1e-3 * max(abs(ours), abs(theirs), 1e-6)
    return ours == theirs
