"""Colour pictures as small volumes: three colours are three slices."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchio import Image, LabelMap, Subject
from torchio.transforms import Transform
from torchio.transforms.augmentation import RandomTransform

from lightning_atlas.data.augmentation.moves import Shape
from lightning_atlas.data.augmentation.pictures import PictureTransform
from lightning_atlas.data.boxes import over_depth
from lightning_atlas.data.pipeline import flat
from lightning_atlas.types import Boxes

COLOURS = (0, 1, 2)
"""Red, green, blue."""


class Slices(NamedTuple):
    """The movement from colours to slices; see `ColoursToSlices`.

    Args:
        order: Which colour each slice is.
        back: From slices to colours.
        again: The colours are slices already, and get another order.
    """

    order: tuple[int, int, int]
    back: bool
    again: bool = False

    def pixels(self, image: Tensor) -> Tensor:
        """Exchange the axes of channels and slices; a view, unless the planes come in another order."""
        if self.again:
            image = BACK.pixels(image)
        _check(tuple(image.shape), self.back, False)
        if self.back:
            order = [self.order.index(colour) for colour in COLOURS]
            colours = image.transpose(0, 3)
            return colours if self.order == COLOURS else colours[order]
        return (image if self.order == COLOURS else image[list(self.order)]).transpose(0, 3)

    def masks(self, label: Tensor) -> Tensor:
        """Repeat a mask on each slice; back, take that of the first."""
        if self.again:
            label = BACK.masks(label)
        _check(tuple(label.shape), self.back, True)
        return label[..., :1] if self.back else label.expand(-1, -1, -1, 3)

    def boxes(self, boxes: Boxes, shape: Sequence[int]) -> Boxes:
        """Let boxes reach through all slices; back, through the one plane."""
        return over_depth(boxes, 1 if self.back else 3)

    def sides(self, shape: Sequence[int]) -> Shape:
        """Three slices; back, one plane."""
        return shape[0], shape[1], 1 if self.back else 3

    def map(self, shape: Sequence[int]) -> np.ndarray:
        """Leave the affine: the planes have no distance."""
        return np.eye(4)


BACK = Slices(COLOURS, back=True)
"""From slices to colours."""


class ColoursToSlices(PictureTransform):
    """Make the three colour channels of a picture the three slices of one channel, so that a 3D network can read it.

    Nothing is computed: the channel axis becomes k, `(3, i, j, 1)` becomes `(1, i, j, 3)`, and is a view unless the
    order is another. Labels of a picture are repeated on each slice, boxes reach through all. `inverse` goes back.

    Args:
        back: Go back.
        order: Which colour (0 red, 1 green, 2 blue) each slice is.
        kwargs: Those of TorchIO's transforms.

    Source: the Variable Dimension Transform, Zhang et al. 2022, *Advancing 3D Medical Image Analysis with Variable
    Dimension Transform based Supervised 3D Pre-training*, arXiv:2201.01426.
    """

    carries_boxes = True

    def __init__(self, back: bool = False, order: tuple[int, int, int] = COLOURS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if sorted(order) != [0, 1, 2]:
            raise ValueError(f"ColoursToSlices: order names each of the colours 0, 1 and 2 once; found {tuple(order)}")
        self.back = back
        self.order = order
        self.args_names = ["back", "order"]

    def move(self, shape: Sequence[int]) -> Slices:
        """Return the movement, whatever the shape."""
        red, green, blue = self.order
        return Slices((red, green, blue), self.back)

    def apply_transform(self, subject: Subject) -> Subject:
        """Exchange the axes of each image of a subject.

        Raises:
            ValueError: An image is no colour picture of one plane, or, going back, has not one channel of three slices.
        """
        for image in self.get_images(subject):
            _check(image.shape, self.back, isinstance(image, LabelMap), image)
        return super().apply_transform(subject)

    def is_invertible(self) -> bool:
        """Return that it is."""
        return True

    def inverse(self) -> "ColoursToSlices":
        """Return the transform that goes back."""
        return ColoursToSlices(not self.back, self.order)


class RandomColoursToSlices(PictureTransform, RandomTransform):
    """Make the colours of a picture slices, in an order that is drawn for each picture, each of the six equally often.

    So the network learns no fixed order of slices. Colours that are slices already, `(1, i, j, 3)`, come in another
    order: `ColoursToSlices` in `preprocess` of a `ScanDataModule`, this in its `augment`. What was drawn stands in the
    subject's history as `ColoursToSlices`, which goes back.

    Source: as `ColoursToSlices`; its training exchanged the planes of every image, its test did not.
    """

    carries_boxes = True

    def __init__(self) -> None:
        super().__init__()

    def move(self, shape: Sequence[int]) -> Slices:
        """Draw the order."""
        red, green, blue = torch.randperm(3).tolist()
        return Slices((red, green, blue), back=False, again=shape[3] == 3)

    def apply_transform(self, subject: Subject) -> Subject:
        """Draw the order, and exchange the axes of each image."""
        move = self.move(subject.get_images(intensity_only=False)[0].shape)
        colours = ColoursToSlices(back=True)(subject) if move.again else subject
        return ColoursToSlices(order=move.order)(colours)


def colours_are_slices(seen: Mapping[str, Sequence[Transform]]) -> bool:
    """Tell whether a network sees colours as slices.

    Args:
        seen: All transforms that pictures go through, in training and in scoring, by the argument that makes the
            difference.

    Raises:
        ValueError: It does in training or in scoring alone.
    """
    sliced = {}
    for name, transforms in seen.items():
        found = [each for each in flat(transforms) if isinstance(each, ColoursToSlices | RandomColoursToSlices)]
        sliced[name] = bool(found) and not getattr(found[-1], "back", False)
    if len(set(sliced.values())) > 1:
        other = next(name for name in sliced if not sliced[name])
        added = "RandomColoursToSlices" if other == "augment" else "ColoursToSlices"
        raise ValueError(
            f"colours are slices in training or in scoring alone: add {{class_path: {added}}} at the end of "
            f"data.init_args.{other}"
        )
    return any(sliced.values())


def _check(shape: Sequence[int], back: bool, mask: bool, image: Image | None = None) -> None:
    channels, planes = shape[0], shape[3]
    wanted = (1, 3) if back else (1 if mask else 3, 1)
    if (channels, planes) != wanted:
        raise ValueError(
            f"ColoursToSlices takes {wanted[0]} channels of {wanted[1]} planes, and found {channels} of {planes}"
            f"{f' in {image.path}' if image is not None and image.path else ''}; it is for colour pictures"
        )
