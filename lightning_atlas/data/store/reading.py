"""From a case's files to voxels: the scan, and what somebody drew on it, on the scan's own grid."""

from dataclasses import replace

import numpy as np
import torch
import torchio as tio

from lightning_atlas.data.cases import Case
from lightning_atlas.data.formats import Watch, read_image
from lightning_atlas.data.labels.drawing import Drawing, looks_dense, read_drawing, restrict
from lightning_atlas.data.store.slabs import read_slab


def read_case(case: Case, watch: Watch | None = None) -> tuple[tio.Subject, Drawing]:
    """Read the scan as `image` (float32) and `label` (rows of the drawing's table), and the drawing.

    Args:
        case: Each of its files is read once.
        watch: Is shown the voxels.

    Raises:
        ValueError: A file is damaged, channels or labels lie on other grids than the image, or a label has a value
            that no name has.
    """
    try:
        return _read(case, watch)
    except ValueError as error:
        named = case.subject in str(error)
        raise error if named else ValueError(f"{case.subject}: {error}") from error


def _read(case: Case, watch: Watch | None) -> tuple[tio.Subject, Drawing]:
    image = read_channels(case, watch)
    if case.variation is None:
        drawing = read_drawing(case, image, watch)
    else:
        # Planes are drawn on the simulated subject, not on the scan that it is made of.
        drawing = read_drawing(replace(case, drawn_on=()), image, watch)
        varied = case.variation(_subject(image, drawing))
        image = tio.ScalarImage(tensor=varied.get_image("image").data, affine=image.affine)
        rows = varied.get_image("label").numpy()[0]
        drawing = restrict(replace(drawing, rows=rows.astype(drawing.rows.dtype)), case.drawn_on, image, watch)
    return _subject(image, drawing), replace(drawing, notes=(*drawing.notes, *_doubts(case, drawing)))


def _doubts(case: Case, drawing: Drawing) -> list[str]:
    """Return a line for each place that says that unlabelled planes are unknown though all of them look drawn."""
    return [
        f"{case.subject}: every plane across {place.axis} has a label, as if the whole scan had been drawn; with "
        "`labelled` the planes without one count as unknown: leave it out if they were looked at"
        for place in case.drawn_on
        if place.labelled and looks_dense(drawing, place.axis)
    ]


def read_channels(case: Case, watch: Watch | None = None) -> tio.ScalarImage:
    """Read the channels of a scan as one image.

    Args:
        case: Its channels are read.
        watch: Is shown the intensities.

    Raises:
        ValueError: They do not lie on one grid.
    """
    if case.slab is not None:
        return read_slab(case.slab, case.channels["image"], watch)
    files = case.channels
    images = {name: read_image(path, watch) for name, path in files.items()}
    first = next(iter(images.values()))
    for name, image in images.items():
        if image.spatial_shape != first.spatial_shape or not np.allclose(image.affine, first.affine, atol=1e-2):
            raise ValueError(
                f"{case.subject}: the channels lie on different grids, {first.spatial_shape} and {image.spatial_shape} "
                f"or placed otherwise ({files[name]}); put it on the first's: torchio.Resample(FIRST)({name})"
            )
        if image.num_channels != 1 and len(images) > 1:
            raise ValueError(f"{files[name]} has {image.num_channels} channels; give one file for each, or one for all")
    if len(images) == 1:
        return first
    return tio.ScalarImage(tensor=torch.cat([each.data for each in images.values()]), affine=first.affine)


def _subject(image: tio.ScalarImage, drawing: Drawing) -> tio.Subject:
    return tio.Subject(
        image=image,
        label=tio.LabelMap(tensor=torch.from_numpy(drawing.rows.copy(order="K"))[None], affine=image.affine),
    )
