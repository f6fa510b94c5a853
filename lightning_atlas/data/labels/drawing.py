"""What somebody drew in a case: one volume of small integers and the table that says what each of them means."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torchio as tio
from jaxtyping import Bool, Float, Int8, Integer

from lightning_atlas.data.cases import Case, DrawnOn, Mark
from lightning_atlas.data.formats import Watch, displacement_voxels, one_grid, read_labels
from lightning_atlas.data.labels.combinations import Combinations, blocks
from lightning_atlas.data.labels.grids import Axis, GridMap, along, described, resampled, turned

FIRST_FEW = 12
ROUNDING_VOXELS = 1e-4
"""Headers keep 32-bit numbers, which differ by about this much when a file is written again: not worth a note."""
DENSE_SHARE, DENSE_PLANES = 0.9, 5
"""Planes that a person draws here and there leave gaps; these many in a row are a scan that was drawn throughout."""


@dataclass(frozen=True)
class Drawing:
    """Labels on a voxel grid.

    Args:
        rows: For each voxel its row of the table; row 0 means that nobody decided on anything here.
        affine: From voxels to millimetres (RAS).
        names: The dataset's own names, one for each column.
        states: The voxel is in the structure (1), is not (0), or that is not known (-1).
        drawn: Somebody decided on the structure here; what only follows from another one is known but not drawn.
        layers: For each name the number of its layer; those of one layer exclude each other.
        notes: What was unusual about the files, for reports.
    """

    rows: Integer[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]
    names: tuple[str, ...]
    states: Int8[np.ndarray, "rows names"]
    drawn: Bool[np.ndarray, "rows names"]
    layers: tuple[int, ...]
    notes: tuple[str, ...] = ()


Row = tuple[tuple[int, ...], tuple[bool, ...]]
"""A row of a table: `states` and `drawn`."""


def table_row(inside: Iterable[int], known: Sequence[bool], layers: Sequence[int]) -> Row:
    """Return what is known of a voxel.

    Args:
        inside: Columns of the structures in which somebody saw it; those that are not known do not count.
        known: For each column whether somebody decided on it here.
        layers: For each column its layer: who is in one structure is in no other of its layer.
    """
    inside = {column for column in inside if known[column]}
    taken = {layers[column] for column in inside}
    states = tuple(
        1 if column in inside else 0 if decided or layers[column] in taken else -1
        for column, decided in enumerate(known)
    )
    return states, tuple(bool(decided) for decided in known)


def read_drawing(case: Case, image: tio.Image, watch: Watch | None = None) -> Drawing:
    """Read what was drawn in a case on the image's own grid; each file is read once, one after the other.

    Structures of one layer of a file exclude each other, so in one of them the others are known too, drawn or not.
    Files imply nothing for each other. What `case.drawn_on` leaves out is unknown.

    Args:
        case: Its files are read.
        image: Its scan.
        watch: Is shown the label values.

    Raises:
        ValueError: A label map has a value that no name has or lies on another grid, or `drawn_on` does not fit.
    """
    files: dict[Path, dict[str, Mark]] = {}
    for name, mark in case.marks.items():
        files.setdefault(mark.file, {})[name] = mark
    names = tuple(case.marks)
    codes = np.zeros(image.spatial_shape, dtype=np.int16, order="F")  # as the readers' volumes lie in memory
    found, layers, notes = Combinations(), list[_Layer](), list[str]()
    for file, marks in files.items():
        volumes, remarks = _on_grid(file, image, watch)
        notes += remarks
        for number in sorted({mark.layer for mark in marks.values()}):
            values = {names.index(name): mark.value for name, mark in marks.items() if mark.layer == number}
            layers.append(_Layer(file, values, case.ignore_value, whole=file == case.label))
            layers[-1].mark(codes, found, len(layers) - 1, _layer(volumes, number, file))
    of_name = {column: number for number, layer in enumerate(layers) for column in layer.values}
    layer_numbers = tuple(of_name[column] for column in range(len(names)))
    here = [case.drawn is None or name in case.drawn or name not in case.names for name in names]
    rows = []
    for combination in found.found:
        holding = [(part, layers[part].sets[option]) for part, option in combination]
        ignored = {part for part, columns in holding if columns is None}
        known = [drawn and layer not in ignored for drawn, layer in zip(here, layer_numbers, strict=True)]
        rows.append(table_row((column for _, columns in holding for column in columns or ()), known, layer_numbers))
    like = Drawing(codes, image.affine, names, *_arrays([], len(names)), layer_numbers, tuple(notes))
    return restrict(tabulated(codes, rows, like), case.drawn_on, image, watch)


def restrict(drawing: Drawing, drawn_on: Sequence[DrawnOn], image: tio.Image, watch: Watch | None = None) -> Drawing:
    """Make unknown what lies outside the places where somebody drew; a region that is a segment is no structure.

    Args:
        drawing: All that is in the files.
        drawn_on: The places.
        image: The scan.
        watch: Is shown the values of masks.

    Raises:
        ValueError: A place does not fit the image, or speaks of a structure that there is not.
    """
    if not drawn_on:
        return drawing
    segments, notes = {place.segment for place in drawn_on} - {None}, list(drawing.notes)
    found, codes = Combinations(), np.zeros(drawing.rows.shape, dtype=np.int16, order="F")
    found.extend(codes, 0, drawing.rows)
    for number, place in enumerate(drawn_on, 1):
        if unknown := sorted(({place.segment, *(place.names or ())} - {None}) - set(drawing.names)):
            raise ValueError(f"drawn_on speaks of {', '.join(unknown)}, but the labels have {', '.join(drawing.names)}")
        axis, planes = _planes_of(place, drawing, segments)
        inside = np.zeros(codes.shape, dtype=bool, order="F")
        np.moveaxis(inside, axis, 0)[planes] = True
        if place.mask is not None:
            volumes, remarks = _on_grid(place.mask, image, watch)
            inside &= (volumes > 0).any(axis=0)
            notes += remarks
        if place.segment is not None:
            lut = _inside_segment(drawing, place.segment)
            for block, rows in blocks(inside, drawing.rows):
                block &= lut[rows]
        found.extend(codes, number, inside)
    speaks_of = [[place.names is None or name in place.names for name in drawing.names] for place in drawn_on]
    rows = [_restricted(drawing, dict(combination), speaks_of) for combination in found.found]
    return _without(tabulated(codes, rows, replace(drawing, notes=tuple(notes))), segments)


def tabulated(codes: Integer[np.ndarray, "i j k"], meanings: Sequence[Row], like: Drawing) -> Drawing:
    """Return a drawing of the rows that occur.

    Args:
        codes: For each voxel a number.
        meanings: For each number what it means; several may mean the same.
        like: Its names, layers, affine and notes are the drawing's.
    """
    occurring = np.zeros(len(meanings), dtype=bool)
    for (block,) in blocks(codes):
        occurring |= np.bincount(block.ravel(), minlength=len(meanings)) > 0
    unknown = table_row((), [False] * len(like.names), like.layers)
    chosen = {meaning for meaning, there in zip(meanings, occurring, strict=True) if there} - {unknown}
    table = [unknown, *sorted(chosen, key=_order)]
    dtype = np.uint8 if len(table) <= 256 else np.int16
    numbers = {meaning: number for number, meaning in enumerate(table)}
    lut = np.array([numbers.get(meaning, 0) for meaning in meanings], dtype=dtype)
    rows = np.empty_like(codes, dtype=dtype)
    for target, source in blocks(rows, codes):
        target[...] = lut[source]
    states, drawn = _arrays(table, len(like.names))
    return replace(like, rows=rows, states=states, drawn=drawn)


def drawn_planes(drawing: Drawing, axis: Axis = "k") -> dict[str, int]:
    """Return for each structure on how many planes across an axis somebody decided on it."""
    there = rows_on_planes(drawing, along(drawing.affine, axis)[0]) > 0
    return {
        name: int((there & drawn).any(axis=1).sum()) for name, drawn in zip(drawing.names, drawing.drawn.T, strict=True)
    }


def looks_dense(drawing: Drawing, axis: Axis = "k") -> bool:
    """Tell whether the drawn planes lie next to each other, as if the whole scan had been drawn."""
    there = rows_on_planes(drawing, along(drawing.affine, axis)[0]) > 0
    planes = np.flatnonzero((there & drawing.drawn.any(axis=1)).any(axis=1))
    return len(planes) >= DENSE_PLANES and len(planes) >= DENSE_SHARE * int(planes[-1] - planes[0] + 1)


def rows_on_planes(drawing: Drawing, axis: int) -> Integer[np.ndarray, "planes rows"]:
    """Return how many voxels of each row there are on each plane across a voxel axis."""
    count = len(drawing.states)
    planes = np.moveaxis(drawing.rows, axis, 0)
    return np.stack([np.bincount(plane.ravel(order="K"), minlength=count) for plane in planes])


class _Layer:
    """Values of one layer of a file: `sets` says of each option in which columns a voxel is, or `None`: ignored."""

    def __init__(self, file: Path, values: Mapping[int, int | None], ignore: int | None, whole: bool) -> None:
        self.file, self.values = file, values
        self.sets: list[frozenset[int] | None] = [frozenset()]
        special = {value for value in values.values() if value is not None}
        self._named = np.array(sorted(special | (set() if ignore is None else {ignore})), dtype=np.int64)
        self._options = [self._option(self._columns(value, special, ignore)) for value in self._named.tolist()]
        self._others = self._option(frozenset(column for column, value in values.items() if value is None))
        self._strange = whole
        self._zero = 0 in self._named

    def mark(
        self, codes: Integer[np.ndarray, "i j k"], found: Combinations, part: int, values: Integer[np.ndarray, "i j k"]
    ) -> None:
        """Add the layer to the numbers of a volume."""
        strange: set[int] = set()
        table = np.array([*self._options, 0], dtype=np.int16)
        named = np.append(self._named, 0)
        for own, given in blocks(codes, values):
            options = np.zeros(given.shape, dtype=np.int16)
            chosen = np.ones(given.shape, dtype=bool) if self._zero else given != 0
            taken = given[chosen]
            place = np.searchsorted(self._named, taken)
            hit = named[place] == taken
            options[chosen] = np.where(hit, table[place], np.where(taken > 0, self._others, 0))
            if self._strange and not hit.all():
                strange |= set(np.unique(taken[~hit & (taken != 0)]).tolist())
            found.extend(own, part, options)
        if strange:
            self._refuse(sorted(strange))

    def _columns(self, value: int, special: set[int], ignore: int | None) -> frozenset[int] | None:
        if value == ignore and value not in special:
            return None
        return frozenset(column for column, own in self.values.items() if own == value or (own is None and value > 0))

    def _option(self, columns: frozenset[int] | None) -> int:
        self.sets.append(columns)
        return len(self.sets) - 1

    def _refuse(self, strange: list[int]) -> None:
        more = f" and {len(strange) - FIRST_FEW} more" if len(strange) > FIRST_FEW else ""
        raise ValueError(
            f"{self.file} has the values {strange[:FIRST_FEW]}{more}, which no name has: name all of them in `values`, "
            "and choose with data.init_args.classes which to learn: {liver: [liver]}"
        )


def _layer(volumes: Integer[np.ndarray, "layers i j k"], number: int, file: Path) -> Integer[np.ndarray, "i j k"]:
    if number >= len(volumes):
        raise ValueError(f"{file} has {len(volumes)} layers, so none has the number {number} (they count from 0)")
    return volumes[number]


def _on_grid(
    file: Path, image: tio.Image, watch: Watch | None
) -> tuple[Integer[np.ndarray, "layers i j k"], list[str]]:
    """Read labels onto the grid of their image; only a `.seg.nrrd`, which knows where it lies, may have another."""
    labels = read_labels(file, watch)
    if labels.spatial_shape == image.spatial_shape:
        apart = displacement_voxels(image.affine, labels.affine, image.spatial_shape)
        if one_grid(apart):
            note = f"{file}: its header is off the image's by {apart[1]:.1g} voxels, taken as the same grid"
            return labels.numpy(), [note] if apart[1] > ROUNDING_VOXELS else []
    both = f"{described(image.spatial_shape, image.affine)} and {described(labels.spatial_shape, labels.affine)}"
    if not file.name.lower().endswith(".seg.nrrd"):
        raise ValueError(
            f"image and label lie on different grids: {both} ({file}); put the label on the image's: "
            "torchio.Resample(IMAGE)(LABEL)"
        )
    moved = [_moved(layer, labels.affine, image) for layer in labels.numpy()]
    volumes = np.stack([volume for volume, _ in moved])
    before, after = int((labels.numpy() != 0).sum()), int((volumes != 0).sum())
    if before and not after:
        raise ValueError(f"{file} has labels beside the image only: {both}; is it another scan's?")
    if not all(exact for _, exact in moved):
        return volumes, [f"{file}: resampled to the image's grid: {both}"]
    return volumes, [f"{file}: {before - after} labelled voxels lie beside the image"] if after < before else []


def _moved(
    volume: Integer[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"], image: tio.Image
) -> tuple[Integer[np.ndarray, "i2 j2 k2"], bool]:
    view, affine = turned(volume, affine, image.affine)
    grid = GridMap.between(affine, view.shape, image.affine, image.spatial_shape)
    return (grid.picked(view) if grid.exact else resampled(view, grid)), grid.exact


def _planes_of(place: DrawnOn, drawing: Drawing, regions: set[str | None]) -> tuple[int, Bool[np.ndarray, " planes"]]:
    axis, direction = along(drawing.affine, place.axis)
    size = drawing.rows.shape[axis]
    heights = np.arange(size)[::direction]
    chosen = np.ones(size, dtype=bool)
    if place.planes is not None:
        if wrong := [plane for plane in place.planes if not 0 <= plane < size]:
            raise ValueError(f"drawn_on has the planes {wrong}, but the image has planes 0 to {size - 1}")
        chosen &= np.isin(heights, place.planes)
    if place.every is not None:
        chosen &= heights % place.every == 0
    if place.labelled:
        names = set(place.names or drawing.names) - regions
        columns = [column for column, name in enumerate(drawing.names) if name in names]
        labels = (drawing.states[:, columns] == 1).any(axis=1)
        chosen &= rows_on_planes(drawing, axis)[:, labels].any(axis=1)
    return axis, chosen


def _inside_segment(drawing: Drawing, segment: str) -> Bool[np.ndarray, " rows"]:
    """Return which rows lie in a region; structures of its own layer were cut out of it and belong to it."""
    layer = drawing.layers[drawing.names.index(segment)]
    columns = [column for column, number in enumerate(drawing.layers) if number == layer]
    return (drawing.states[:, columns] == 1).any(axis=1)


def _restricted(drawing: Drawing, combination: Mapping[int, int], speaks_of: Sequence[Sequence[bool]]) -> Row:
    row = combination.get(0, 0)
    outside = [spoken for number, spoken in enumerate(speaks_of, 1) if number not in combination]
    known = drawing.drawn[row] & ~np.any(outside, axis=0) if outside else drawing.drawn[row]
    return table_row(np.flatnonzero(drawing.states[row] == 1).tolist(), known.tolist(), drawing.layers)


def _without(drawing: Drawing, names: set[str | None]) -> Drawing:
    columns = [column for column, name in enumerate(drawing.names) if name not in names]
    if len(columns) == len(drawing.names):
        return drawing
    rows = [
        (tuple(states), tuple(drawn))
        for states, drawn in zip(drawing.states[:, columns].tolist(), drawing.drawn[:, columns].tolist(), strict=True)
    ]
    kept, layers = (tuple(each[column] for column in columns) for each in (drawing.names, drawing.layers))
    return tabulated(drawing.rows, rows, replace(drawing, names=kept, layers=layers))


def _order(row: Row) -> tuple[int, list[int], Row]:
    inside = [column for column, state in enumerate(row[0]) if state == 1]
    return len(inside), inside, row


def _arrays(rows: Sequence[Row], names: int) -> tuple[Int8[np.ndarray, "rows names"], Bool[np.ndarray, "rows names"]]:
    states = np.array([states for states, _ in rows], dtype=np.int8).reshape(len(rows), names)
    return states, np.array([drawn for _, drawn in rows], dtype=bool).reshape(len(rows), names)
