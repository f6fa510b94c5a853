"""What weights expect of an image, and in which ways some data break it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

FORMAT = 1
"""Of a contract as it is written; raised when an older version would read a newer file wrongly."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Contract:
    """What weights were trained on. `None` means: not stated.

    Args:
        classes: Names of the classes in the order of the network's outputs, without background.
        modality: `CT`, `MR` or another short name.
        orientation: Axis codes of the voxel grid, such as `RAS`.
        spacing_mm: Voxel size along i, j, k in millimetres.
        normalization: How intensities were taken to the network's range: `window`, `linear` (a window that does not
            clip), `percentiles`, `percentiles above air` (of the volume's voxels that are not air), `z-score`, or
            `z-score of nonzero` (nnU-Net's, inside what is not 0, which nothing here makes).
        window: The intensities that were taken to the ends of `range` (Hounsfield units for CT), or two percentiles.
        range: The intensities that the network saw for the ends of the window.
        channels: Names of the input channels in order.
        mirrored_axes: Axes (of `i`, `j`, `k`) along which training mirrored images.
        overlapping: A voxel may be in several classes: one output for each class and none for the background (sigmoid).
        axis_order: Axes that the kernels lie along; weights made for the reverse are transposed when they are read.
        predicts: What the outputs say: of `voxels` in which of the classes they are; of a whole scan its `class`, its
            `labels` (each of the classes or not), or `values`, which are called like the classes; or `boxes` of the
            classes.
        seen_spacing_mm: The smallest and the largest voxel of the training scans' files, to the right, front and top.
        seen_extent_mm: The smallest and the largest field of view of these files, to the right, front and top.
        seen_intensities: For each channel, the smallest and the largest value that these scans have at each of `LEVELS`
            above air: in the file's units where `window` has them, else as the network sees them.
        seen_values: Mean and standard deviation of each value over the training scans, where scans have values.
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
    axis_order: str = "ijk"
    predicts: str = "voxels"
    seen_spacing_mm: tuple[Triple, Triple] | None = None
    seen_extent_mm: tuple[Triple, Triple] | None = None
    seen_intensities: tuple[tuple[tuple[float, float], ...], ...] | None = None
    seen_values: tuple[tuple[float, float], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: fit for JSON and for a checkpoint that is read safely."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Contract":
        """Read what `to_dict` wrote, in this format or an older one.

        Raises:
            ValueError: It is of a newer format, or a key is not one of the contract's.
        """
        given = dict(values)
        if (number := given.pop("format", FORMAT)) > FORMAT:
            raise ValueError(
                f"the contract has format {number}, and this version of lightning_atlas reads up to {FORMAT}: "
                "pip install --upgrade lightning-atlas"
            )
        names = {each.name for each in fields(cls)}
        if unknown := sorted(set(given) - names):
            raise ValueError(f"a contract has no {', '.join(unknown)}; its keys are {', '.join(sorted(names))}")
        return cls(**{key: _tuples(each) for key, each in given.items()})

    def remembering(self, former: "Contract | None") -> "Contract":
        """Return this contract with what training saw taken from a former one, where this one does not say."""
        keys = (*SEEN, "seen_values")
        seen = {key: getattr(former, key) for key in keys if getattr(self, key) is None} if former else {}
        return replace(self, **seen)

    def to_json(self) -> str:
        """Return one line, as it stands in the header of a weights file."""
        return json.dumps(self.to_dict())


COMPARED = ("modality", "orientation", "spacing_mm", "normalization", "window", "range", "channels", "axis_order")
"""Keys whose difference must be meant. Classes may differ: that is what transfer is for."""
NEVER = {
    "range": "the network would see other numbers than its weights were trained on",
    "axis_order": "the kernels would lie across other axes than the image's",
}
"""Keys of which no difference can be meant, and why."""
MAY_DIFFER = tuple(key for key in COMPARED if key not in NEVER)
"""Keys that `allow` takes. Channels may stand in another order, and go by the names that both sides have; they may have
other names; and several may stand where the weights know one: its kernels are then repeated."""
SEEN = ("seen_spacing_mm", "seen_extent_mm", "seen_intensities")
"""Keys of what training saw."""
PREPROCESSED = ("orientation", "spacing_mm", "normalization", "window", "range")
"""Keys that follow from the preprocessing alone."""
LEVELS = (5.0, 50.0, 95.0)
"""Percentiles of `seen_intensities`."""
SIZE_FACTOR = 1.5
"""A voxel or field of view is outside beyond so many times the largest, or below the smallest divided by it."""
MARGIN = 0.25
"""An intensity is outside beyond the range that training saw by such a share of the span of all levels."""


@dataclass(frozen=True)
class Difference:
    """One key in which data are not what the weights expect.

    Args:
        key: Of the contract.
        weights: What the weights expect.
        data: What the data give; `None` where they do not say.
    """

    key: str
    weights: Any
    data: Any

    @property
    def forbidden(self) -> str | None:
        """Why this cannot be meant; `None` where it can."""
        if self.key == "channels" and len(self.weights) not in (1, len(self.data)):
            return f"the first layer takes {len(self.weights)}"
        return NEVER.get(self.key)

    def __str__(self) -> str:
        given = "do not say" if self.data is None else f"give {in_words(self.data)}"
        return f"{self.key}: the weights expect {in_words(self.weights)}, the data {given}"


class Departure(Difference):
    """One key in which a scan lies outside of what training saw."""

    @property
    def forbidden(self) -> str | None:
        """Why this cannot be allowed; `None` where it can."""
        return f"the first layer takes {len(self.weights)}" if self.key == "channels" else None

    def __str__(self) -> str:
        levels = f" at percentiles {', '.join(f'{each:g}' for each in LEVELS)}" if self.key == "intensities" else ""
        return f"{self.key}: training saw {in_words(self.weights)}{levels}, this scan has {in_words(self.data)}"


def differences(weights: Contract, data: Contract) -> list[Difference]:
    """Return the keys that the weights state and in which the data disagree or say nothing.

    Numbers agree to one part in a thousand.
    """
    pairs = ((key, getattr(weights, key), getattr(data, key)) for key in COMPARED)
    return [Difference(key, ours, theirs) for key, ours, theirs in pairs if not _agree(ours, theirs)]


def check_allowed(keys: Iterable[str], known: Sequence[str] = MAY_DIFFER) -> None:
    """Refuse to allow what is no key, or what cannot be meant.

    Raises:
        ValueError: Names the key, why, and the keys that can be allowed.
    """
    for key in keys:
        if key not in known:
            why = f"{key} cannot be allowed, since {NEVER[key]}" if key in NEVER else f"there is no {key!r} to allow"
            raise ValueError(f"allow: {why}; what can be allowed: {', '.join(known)}")


def outside(weights: Contract, scan: Contract) -> list[Departure]:
    """Return in what a scan lies outside of what training saw.

    Args:
        weights: With the ranges that training saw; what it does not state is not looked at.
        scan: One scan, whose `seen` values are its own; a modality that its file does not state is not looked at.
    """
    found: list[Departure] = []
    channels, own = _channels(weights), _channels(scan)
    if len(channels) != len(own):
        found.append(Departure("channels", channels, own))
    if scan.modality and weights.modality and scan.modality != weights.modality:
        found.append(Departure("modality", weights.modality, scan.modality))
    for key in ("seen_spacing_mm", "seen_extent_mm"):
        seen, own = getattr(weights, key), getattr(scan, key)
        if seen and own and not all(map(_near_in_size, own[0], *seen)):
            found.append(Departure(key.removeprefix("seen_"), seen, own[0]))
    return found + _foreign_intensities(weights, scan)


MAY_LIE_OUTSIDE = ("modality", "spacing_mm", "extent_mm", "intensities")
"""Keys of a scan that `predict --allow` takes."""


def _channels(contract: Contract) -> tuple[str, ...]:
    """Return the channels; those of one file have one name together."""
    rows = len(contract.seen_intensities or ())
    more = rows > len(contract.channels)
    return tuple(f"{contract.channels[0]} {n}" for n in range(rows)) if more else contract.channels


def _near_in_size(own: float, smallest: float, largest: float) -> bool:
    return smallest / SIZE_FACTOR <= own <= largest * SIZE_FACTOR


def _foreign_intensities(weights: Contract, scan: Contract) -> list[Departure]:
    if not weights.seen_intensities or not scan.seen_intensities:
        return []
    for seen, own in zip(weights.seen_intensities, scan.seen_intensities, strict=False):
        margin = MARGIN * (max(high for _, high in seen) - min(low for low, _ in seen))
        values = [value for value, _ in own]
        if any(not low - margin <= value <= high + margin for value, (low, high) in zip(values, seen, strict=True)):
            return [Departure("intensities", tuple(zip(*seen, strict=True)), tuple(values))]
    return []


def in_words(value: Any) -> str:
    """Return a value as people read it; a smallest and a largest tuple as a range."""
    if not isinstance(value, tuple):
        return f"{value:.5g}" if isinstance(value, float) else str(value)
    if len(value) == 2 and isinstance(value[0], tuple):
        smallest, largest = map(in_words, value)
        return smallest if smallest == largest else f"{smallest} to {largest}"
    return f"({', '.join(map(in_words, value))})"


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


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
