"""Labels on another grid, without an annotated plane invented, lost or smeared.

Where somebody drew throughout, each structure's share of a target voxel is interpolated linearly: of structures that
overlap with none the largest share wins, and the background competes; one that overlaps needs more than half. A voxel
of which more than half is unknown is unknown; else shares are those of its known part. Where somebody drew on planes,
labels come from the nearest annotated plane and are interpolated within it only (see `AnnotatedPlanes`). Scribbles are
too thin for shares: there a voxel is known where the nearest voxel of the file is.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Integer

from lightning_atlas.data.labels.combinations import Combinations
from lightning_atlas.data.labels.drawing import Drawing, Row, rows_on_planes, table_row, tabulated
from lightning_atlas.data.labels.grids import TIE, GridMap, Neighbours, Shape, anatomical, largest_share, turned
from lightning_atlas.data.labels.planes import AnnotatedPlanes

UNKNOWN, NONE = 0, 1
"""What a group knows of a voxel: nothing; that it is in none of its structures; from 2 on, sets of structures."""
BACKGROUND, OVERLAPPING, FIRST_APART = 0, 1, 2
"""What competes for a voxel: no structure, those that overlap with others, then each that does not."""
FIRST_FEW = 3
SCRIBBLES = 0.1
"""What fills less than this share of the scan, or of its planes, is scribbles."""
THIN_PLANES = 3.0
"""Planes in shorter runs on average were drawn plane by plane; in longer ones they are a region with a thickness."""


def place(drawing: Drawing, affine: Float[np.ndarray, "4 4"], shape: Shape) -> Drawing:
    """Return a drawing, as read, on another grid; outside its own extent lies row 0.

    Combinations of structures that are new get rows of their own. Where the voxels of both grids coincide, nothing is
    interpolated.

    Raises:
        ValueError: The grid is so coarse that annotated planes would be lost.
    """
    view, view_affine = turned(drawing.rows, drawing.affine, affine)
    grid = GridMap.between(view_affine, view.shape, affine, shape)
    if grid.exact:
        return replace(drawing, rows=grid.picked(view), affine=affine)
    source = replace(drawing, rows=np.ascontiguousarray(view), affine=view_affine)
    together, groups = _groups(source, grid)
    found, codes = Combinations(), np.zeros(shape, dtype=np.int16)
    for block in grid.blocks():
        places = grid.places(block)
        for number, group in enumerate(groups):
            found.extend(codes[block], number, group.numbers(source.rows, places, block))
        if len(groups) > 1:
            _settle(codes[block], found, groups, together, (source.rows, places, block))
    for group in groups:
        _check_planes(group, source)
    meanings = [_meaning(combination, groups, source.layers) for combination in found.found]
    return tabulated(codes, meanings, replace(source, affine=affine))


class _Group:
    """Structures that were drawn at the same places.

    Args:
        drawing: Labels whose axes run along the target's.
        columns: The structures.
        apart: For each structure of the drawing whether it overlaps with none.
        planes: Annotated planes; `None` where drawing was not by planes.
        scribbled: Whether drawing was by scribbles.
    """

    def __init__(
        self,
        drawing: Drawing,
        columns: Sequence[int],
        apart: Bool[np.ndarray, " names"],
        planes: AnnotatedPlanes | None,
        scribbled: bool,
    ) -> None:
        self.columns, self.planes, self._scribbled = columns, planes, scribbled
        self.sets: list[tuple[int, ...]] = [(), ()]
        self._numbers: dict[tuple[int, ...], int] = {(): NONE}
        self._of_row = np.zeros(len(drawing.states), dtype=np.int16)
        for row in np.flatnonzero(drawing.drawn[:, columns[0]]):
            self._of_row[row] = self.number(tuple(each for each in columns if drawing.states[row, each] == 1))
        self._inside = np.array([[column in each for each in self.sets] for column in range(len(apart))])
        self._overlapping = [column for column in columns if not apart[column]]
        self._kinds = np.full(len(self.sets), BACKGROUND, dtype=np.int16)
        self._of_kind = np.full(FIRST_APART + len(apart), NONE)
        for number, structures in enumerate(self.sets):
            if structures:
                self._kinds[number] = FIRST_APART + structures[0] if apart[structures[0]] else OVERLAPPING
                self._of_kind[self._kinds[number]] = number

    def number(self, structures: tuple[int, ...]) -> int:
        """Return the number of a set of structures; a new one gets the next."""
        number = self._numbers.setdefault(structures, len(self.sets))
        if number == len(self.sets):
            self.sets.append(structures)
        return number

    def numbers(
        self, rows: Integer[np.ndarray, "i j k"], places: list[np.ndarray], block: slice
    ) -> Integer[np.ndarray, "i2 j2 k2"]:
        """Return for each voxel of a block of the target what the group knows of it."""
        places, valid = (places, np.array(True)) if self.planes is None else self.planes.taken(places, block)
        around = Neighbours(rows, places)
        numbers, differ = around.mixed(self._of_row)
        differ &= around.inside & valid
        if differ.any():
            values, weights = around.at(differ)
            numbers[differ] = self._decided(self._of_row[values], weights)
        return np.where(around.inside & valid, numbers, UNKNOWN)

    def share(
        self,
        number: int,
        where: Bool[np.ndarray, "i2 j2 k2"],
        rows: Integer[np.ndarray, "i j k"],
        places: list[np.ndarray],
        block: slice,
    ) -> Float[np.ndarray, " places"]:
        """Return what share of some voxels of a block is in a set of structures."""
        places = places if self.planes is None else self.planes.taken(places, block)[0]
        values, weights = Neighbours(rows, places).at(where)
        numbers = self._of_row[values]
        inside = self._inside[list(self.sets[number])][:, numbers].all(axis=0)
        return (weights * inside).sum(axis=0) / np.maximum((weights * (numbers != UNKNOWN)).sum(axis=0), TIE)

    def _decided(
        self, numbers: Integer[np.ndarray, "neighbours places"], weights: Float[np.ndarray, "neighbours places"]
    ) -> Integer[np.ndarray, " places"]:
        observed = numbers != UNKNOWN
        nearest = weights > weights.max(axis=0) - TIE
        weights = weights * observed
        share = weights.sum(axis=0)
        known = (nearest & observed).any(axis=0) if self._scribbled else share > 0.5 - TIE
        weights = weights / np.maximum(share, TIE)
        kinds = largest_share(self._kinds[numbers], weights)
        decided = self._of_kind[kinds]
        overlap = kinds == OVERLAPPING
        if overlap.any():
            decided[overlap] = self._more_than_half(numbers[:, overlap], weights[:, overlap])
        return np.where(known, decided, UNKNOWN)

    def _more_than_half(
        self, numbers: Integer[np.ndarray, "neighbours places"], weights: Float[np.ndarray, "neighbours places"]
    ) -> Integer[np.ndarray, " places"]:
        found, codes = Combinations(), np.zeros(numbers.shape[1], dtype=np.int16)
        for column in self._overlapping:
            share = np.einsum("np,np->p", weights, self._inside[column][numbers])
            found.extend(codes, column, share > 0.5 + TIE)
        sets = [self.number(tuple(column for column, _ in combination)) for combination in found.found]
        return np.array(sets)[codes]


def _groups(drawing: Drawing, grid: GridMap) -> tuple[Bool[np.ndarray, "names names"], list[_Group]]:
    """Return which structures overlap, and the groups of those that were drawn at the same places."""
    counts = rows_on_planes(drawing, 0).sum(axis=0)
    there = counts > 0
    inside = (drawing.states[there] == 1).astype(int)
    together = inside.T @ inside > 0
    apart = together.sum(axis=0) <= 1
    columns: dict[bytes, list[int]] = {}
    for column, drawn in enumerate(drawing.drawn.T):
        if (drawn & there).any():
            columns.setdefault((drawn & there).tobytes(), []).append(column)
    groups = []
    for members in columns.values():
        drawn = drawing.drawn[:, members[0]]
        planes = None if drawn[there].all() else _planes(drawing, drawn, grid)
        scan = (
            drawing.rows.size if planes is None else drawing.rows.size * len(planes.planes) / grid.source[planes.axis]
        )
        groups.append(_Group(drawing, members, apart, planes, scribbled=bool(counts[drawn].sum() < SCRIBBLES * scan)))
    return together, groups


def _planes(drawing: Drawing, drawn: Bool[np.ndarray, " rows"], grid: GridMap) -> AnnotatedPlanes | None:
    """Return the planes by which somebody drew: whole ones, or some in thin runs on less than half of an axis."""
    thinnest, best = THIN_PLANES, None
    for axis in range(3):
        counts = rows_on_planes(drawing, axis)
        touched, left_out = counts[:, drawn].any(axis=1), counts[:, ~drawn].any(axis=1)
        if touched.all():
            continue
        planes = np.flatnonzero(touched)
        upwards = anatomical(drawing.affine, axis)[1] > 0
        if not (touched & left_out).any():
            return AnnotatedPlanes(planes, axis, upwards, grid)
        length = len(planes) / (1 + (np.diff(planes) > 1).sum())
        if touched.mean() < 0.5 and length < thinnest:
            thinnest, best = length, AnnotatedPlanes(planes, axis, upwards, grid)
    return best


def _check_planes(group: _Group, drawing: Drawing) -> None:
    if group.planes is None or not (lost := group.planes.lost()):
        return
    letter, direction = anatomical(drawing.affine, group.planes.axis)
    last = drawing.rows.shape[group.planes.axis] - 1
    spacing_mm = np.linalg.norm(drawing.affine[:3, group.planes.axis])
    names = [drawing.names[column] for column in group.columns]
    more = f" and {len(names) - FIRST_FEW} more" if len(names) > FIRST_FEW else ""
    raise ValueError(
        f"the annotated planes {sorted(plane if direction > 0 else last - plane for plane in lost)} of "
        f"{', '.join(names[:FIRST_FEW])}{more} fall between the planes of the network's grid ({spacing_mm:g} mm apart "
        f"in the file); give Resample a target at most as coarse along {letter}"
    )


def _settle(
    codes: Integer[np.ndarray, "i j k"],
    found: Combinations,
    groups: list[_Group],
    together: Bool[np.ndarray, "names names"],
    where_from: tuple[np.ndarray, list[np.ndarray], slice],
) -> None:
    """Let the larger share win where groups claim a voxel for structures that nowhere overlap."""
    waiting = np.unique(codes).tolist()
    while waiting:
        combination = found.found[code := waiting.pop()]
        clashing = [
            number
            for number, (group, own) in enumerate(combination)
            for other, theirs in combination[:number] + combination[number + 1 :]
            if not together[np.ix_(groups[group].sets[own], groups[other].sets[theirs])].all()
        ]
        if not clashing:
            continue
        where = codes == code
        pairs = [combination[number] for number in dict.fromkeys(clashing)]
        shares = np.stack([groups[group].share(own, where, *where_from) for group, own in pairs])
        losers = shares.argmin(axis=0)
        after = [
            found.number(tuple((group, NONE if group == loser else own) for group, own in combination))
            for loser, _ in pairs
        ]
        codes[where] = np.array(after, dtype=codes.dtype)[losers]
        waiting += after


def _meaning(combination: tuple[tuple[int, int], ...], groups: list[_Group], layers: Sequence[int]) -> Row:
    known, inside = [False] * len(layers), list[int]()
    for group, number in combination:
        inside += groups[group].sets[number]
        for column in groups[group].columns:
            known[column] = True
    return table_row(inside, known, layers)
