"""Which boxes are to be found in each scan: what a source says, or what was drawn."""

import hashlib
import json
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage

from lightning_atlas.contract import Contract
from lightning_atlas.data.boxes import between, carried, clipped, make_boxes, over_depth
from lightning_atlas.data.cases import Case
from lightning_atlas.data.labels.classes import Table
from lightning_atlas.data.store.prepare import Prepared
from lightning_atlas.types import Boxes

KNOWN_SHARE = 0.5
"""Where it is not known of so much of a scan whether it is in a class, its boxes are not known."""
NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a corner are of one piece."""
COMPUTED = 1
"""Of the boxes that are kept beside a prepared scan; raised when they are found otherwise."""


class BoxTargets(ABC):
    """Says which boxes there are in each scan.

    Args:
        visible: Boxes of which less than this share of the volume lies in a patch are not asked of it.
    """

    names: tuple[str, ...] = ()
    """Classes of the boxes; none: the recipe's classes."""
    takes_long = False
    """They are looked for before the first patch is cut."""

    def __init__(self, visible: float = 0.25) -> None:
        if not 0 <= visible <= 1:
            raise ValueError(f"boxes: visible is a share from 0 to 1, found {visible}")
        self.visible = visible

    @abstractmethod
    def of(self, case: Case, prepared: Prepared, table: Table) -> Boxes:
        """Return the boxes of a scan in voxels of the network's grid, whole even where they reach beyond it.

        Raises:
            ValueError: They are not known.
        """

    @property
    @abstractmethod
    def description(self) -> str:
        """A few words for reports."""

    def check(self, cases: Sequence[Case], classes: object = None, targets: object = None) -> None:
        """Look at what the recipe and the source say, before a voxel is read.

        Args:
            cases: Of the source.
            classes: What the recipe says of classes of voxels.
            targets: What the recipe wants of whole scans.

        Raises:
            ValueError: It does not say which boxes there are.
        """
        if targets is not None:
            raise ValueError("data.init_args has targets (of whole scans) and boxes; set one of them to null")
        if self.names and classes is not None:
            raise ValueError(
                f"data.init_args: the boxes have names of their own ({', '.join(self.names[:5])}), so classes of "
                "voxels mean nothing: set data.init_args.classes: null"
            )

    def stated(self, contract: Contract) -> Contract:
        """Return a contract of voxels as one of boxes."""
        return replace(contract, overlapping=False, predicts="boxes")

    def seen(self, boxes: Boxes, shape: Sequence[int]) -> Boxes:
        """Return what is asked of an image in which whole boxes lie."""
        return clipped(boxes, shape, self.visible)

    def too_large(self, boxes: Sequence[Boxes], names: Sequence[str], size: Sequence[int]) -> list[str]:
        """Return a line for each class that no patch asks for, as each of its boxes is too large to be seen in one.

        Args:
            boxes: Of each scan that is trained on.
            names: Of the classes.
            size: Of a patch, in voxels.
        """
        every = [make_boxes([]), *boxes]
        corners, classes = torch.cat([each.corners for each in every]), torch.cat([each.classes for each in every])
        sides = corners[:, 3:] - corners[:, :3]
        asked = self.seen(Boxes(torch.cat([torch.zeros_like(sides), sides], dim=1), classes), size).classes
        lines = []
        for number in sorted({*classes.tolist()} - {*asked.tolist()}):
            of_class = sides[classes == number]
            least = of_class[of_class.prod(dim=1).argmin()].tolist()
            lines.append(
                f"{names[number]} is not learned: patches of {_by(size)} voxels show less than {self.visible:g} of each"
                f" of its boxes, the least of {_by(least)}; give larger patches, coarser voxels, or a lower visible"
            )
        return lines


class SourceBoxes(BoxTargets):
    """The boxes that the source says of each scan: a manifest, COCO or DeepLesion.

    A scan of which it says none has none.

    Args:
        names: Classes in the order of their numbers in the source.
        planar: They lie in a plane, and reach over the whole depth of what the network sees: photographs, and slices
            with their neighbours.
        visible: Boxes of which less than this share of the volume lies in a patch are not asked of it.
    """

    def __init__(self, names: list[str], planar: bool = False, visible: float = 0.25) -> None:
        super().__init__(visible)
        if not names or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"boxes: names are the classes in the order of their numbers, each once; found {names}")
        self.names = tuple(names)
        self.planar = planar

    def check(self, cases: Sequence[Case], classes: object = None, targets: object = None) -> None:
        """Look at the classes of all boxes.

        Raises:
            ValueError: A box has no class, or one beyond the names; or there is no box to train on.
        """
        super().check(cases, classes, targets)
        for case in cases:
            for box in case.boxes:
                number = box[6] if len(box) > 6 else 0 if len(self.names) == 1 else -1
                if number not in range(len(self.names)):
                    said = "no class" if len(box) < 7 else f"class {number:g}"
                    raise ValueError(
                        f"boxes: {case.subject} has a box of {said}; names has {len(self.names)}, which count from 0: "
                        f"{', '.join(self.names[:8])}"
                    )
        learned = [case for case in cases if case.split != "predict"]
        if learned and not any(case.boxes for case in learned):
            raise ValueError(
                "boxes: the source says no box of any scan; give a source that does (layout: coco, deeplesion, or "
                "`boxes` in a manifest), or take them from labels: boxes: {class_path: LabelBoxes}"
            )

    def of(self, case: Case, prepared: Prepared, table: Table) -> Boxes:
        """Return the boxes of a scan in voxels of the network's grid."""
        return self.on_grid(case, np.array(prepared.file_affine), np.array(prepared.affine), prepared.shape)

    def on_grid(
        self,
        case: Case,
        file_affine: Float[np.ndarray, "4 4"],
        affine: Float[np.ndarray, "4 4"],
        shape: tuple[int, int, int],
    ) -> Boxes:
        """Return a case's boxes on another grid at the same place."""
        boxes = carried(make_boxes(case.boxes), between(file_affine, affine))
        return over_depth(boxes, shape[2]) if self.planar else boxes

    def seen(self, boxes: Boxes, shape: Sequence[int]) -> Boxes:
        """Return what is asked of an image in which whole boxes lie; planar ones reach over its depth."""
        return super().seen(over_depth(boxes, shape[2]) if self.planar else boxes, shape)

    @property
    def description(self) -> str:
        """A few words for reports."""
        return f"{'planar ' if self.planar else ''}boxes of {len(self.names)} classes"


class LabelBoxes(BoxTargets):
    """Boxes about what was drawn, for each class of the recipe (`data.init_args.classes`).

    They lie on the network's grid. A box is the least that holds a whole piece; in a patch that was turned it is the
    least that holds the turned box.

    Args:
        each: What has a box: a `piece` of voxels that touch (a lesion, a vertebra), or a `class` as a whole (an organ).
        least_voxels: Pieces of fewer voxels of the network's grid have none.
        visible: Boxes of which less than this share of the volume lies in a patch are not asked of it.
    """

    takes_long = True

    def __init__(self, each: Literal["piece", "class"] = "piece", least_voxels: int = 1, visible: float = 0.25) -> None:
        super().__init__(visible)
        if least_voxels < 1:
            raise ValueError(f"boxes: least_voxels is 1 or more, found {least_voxels}")
        self.each: Literal["piece", "class"] = each
        self.least_voxels = least_voxels

    def of(self, case: Case, prepared: Prepared, table: Table) -> Boxes:
        """Return the boxes of a scan, which are found once and kept beside the prepared scan.

        Raises:
            ValueError: It is not known where a class is.
        """
        self._check_known(case, prepared, table)
        settings = [COMPUTED, self.each, self.least_voxels, (table.states == 1).tolist()]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        path = prepared.folder / f"boxes-{digest}.json"
        if path.is_file():
            return make_boxes(json.loads(path.read_text(encoding="utf-8")))
        found = self._found(prepared, table)
        aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.replace(path)
        return make_boxes(found)

    @property
    def description(self) -> str:
        """A few words for reports."""
        return "a box about each piece" if self.each == "piece" else "a box about each class"

    def _check_known(self, case: Case, prepared: Prepared, table: Table) -> None:
        counts = np.array(prepared.counts, dtype=np.float64)
        unknown = counts @ (table.states < 0) / counts.sum()
        if (lost := np.flatnonzero(unknown > KNOWN_SHARE)).size:
            raise ValueError(
                f"boxes: of {unknown[lost[0]]:.0%} of {case.subject} nobody says whether it is in class {lost[0]} "
                "(from 0); boxes need scans that were drawn throughout: take the class or the scan out"
            )

    def _found(self, prepared: Prepared, table: Table) -> list[list[float]]:
        label, found = prepared.label(), list[list[float]]()
        for number in range(table.states.shape[1]):
            inside = (table.states[:, number] == 1)[label]
            pieces = inside.astype(np.int32)
            if self.each == "piece":
                ndimage.label(inside, NEIGHBOURS, output=pieces)
            sizes = np.bincount(pieces.ravel())
            for piece, place in enumerate(ndimage.find_objects(pieces), start=1):
                if place is not None and sizes[piece] >= self.least_voxels:
                    low, high = ([float(getattr(side, end)) for side in place] for end in ("start", "stop"))
                    found.append([*low, *high, float(number)])
        return found


def _by(sides: Sequence[int | float]) -> str:
    return " x ".join(f"{side:g}" for side in sides)
