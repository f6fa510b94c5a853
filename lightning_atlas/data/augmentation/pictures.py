"""Transforms of photographs, whose masks and boxes go with them: crops and sizes; torchvision is not needed."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torchio as tio
from jaxtyping import Shaped
from torch import Tensor
from torchio.transforms import IntensityTransform, RandomFlip, SpatialTransform, ToOrientation, Transform
from torchio.transforms.augmentation import RandomTransform

from lightning_atlas.data.augmentation.moves import Frame, Mirror, Move, Shape, Sides
from lightning_atlas.data.pipeline import flat
from lightning_atlas.types import Boxes

TRIES = 10
"""Crops of `RandomResizedCrop` that are drawn before the largest in the middle is taken."""
BOXES = "boxes"
"""Key of a subject's boxes."""
FOLLOWED = (
    *("RandomResizedCrop", "RandomCrop", "ResizePicture", "RandomResizePicture", "CentreCrop"),
    *("ColoursToSlices", "RandomColoursToSlices", "RandomFlip (axes: [0])"),
)
"""Transforms that boxes follow."""


class Picture(NamedTuple):
    """A picture with what lies on it.

    Args:
        image: As read, bytes; other transforms make other numbers of them.
        affine: From voxels to those of the file, which count as millimetres (RAS).
        boxes: Of the picture, if it has such.
    """

    image: Shaped[Tensor, "channels i j k"]
    affine: np.ndarray
    boxes: Boxes | None = None

    def moved(self, move: Move) -> "Picture":
        """Return it after a movement."""
        shape = self.image.shape[1:]
        boxes = None if self.boxes is None else move.boxes(self.boxes, shape)
        return Picture(move.pixels(self.image), self.affine @ move.map(shape), boxes)


class PictureTransform(SpatialTransform):
    """A movement of pictures, of masks and of boxes under the key `boxes` of a subject."""

    def move(self, shape: Sequence[int]) -> Move:
        """Return how a picture of a shape (channels i j k) is moved; what is random is drawn of torch's generator."""
        raise NotImplementedError

    def carry(self, boxes: Boxes, shape: Shape, affine: np.ndarray) -> tuple[Boxes, Shape, np.ndarray]:
        """Take boxes along, where nothing is drawn; return them with the image's shape and affine after it."""
        move = self.move((1, *shape))
        return move.boxes(boxes, shape), move.sides(shape), affine @ move.map(shape)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Move each image of a subject, and its boxes."""
        first = subject.get_images(intensity_only=False)[0]
        move, shape = self.move(first.shape), first.spatial_shape
        for image in self.get_images(subject):
            image.set_data((move.masks if isinstance(image, tio.LabelMap) else move.pixels)(image.data))
            image.affine = image.affine @ move.map(shape)
        if BOXES in subject:
            subject[BOXES] = move.boxes(cast(Boxes, subject[BOXES]), shape)
        return subject


class RandomResizedCrop(PictureTransform, RandomTransform):
    """Cut a part of random place, area and shape out of a picture, and resize it.

    Args:
        size: Columns and rows that it gets.
        scale: Least and largest share of the picture's area.
        ratio: Least and largest ratio of width to height; drawn evenly on a logarithmic scale.

    Source: Szegedy et al. 2015, *Going Deeper with Convolutions*, section 6, in the form that torchvision made common.
    """

    def __init__(
        self,
        size: tuple[int, int] = (224, 224),
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1] and min(size) > 0):
            raise ValueError(
                f"RandomResizedCrop: scale has shares above 0 up to 1, ratio and size are positive; found scale "
                f"{tuple(scale)}, ratio {tuple(ratio)}, size {tuple(size)}"
            )
        self.size, self.scale, self.ratio = size, scale, ratio
        self.args_names = ["size", "scale", "ratio"]

    def move(self, shape: Sequence[int]) -> Frame:
        """Draw area and ratio until a part fits; after `TRIES` take the largest in the middle of an allowed ratio."""
        wide, high = shape[1], shape[2]
        for _ in range(TRIES):
            area, ratio, i, j = torch.rand(4).tolist()
            area = wide * high * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            logs = math.log(self.ratio[0]), math.log(self.ratio[1])
            ratio = math.exp(logs[0] + ratio * (logs[1] - logs[0]))
            extent = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < extent[0] <= wide and 0 < extent[1] <= high:
                low = int(i * (wide - extent[0] + 1)), int(j * (high - extent[1] + 1))
                return Frame(low, extent, _pair(self.size))
        return _middle(
            shape, (min(wide, round(high * self.ratio[1])), min(high, round(wide / self.ratio[0]))), self.size
        )


class RandomCrop(PictureTransform, RandomTransform):
    """Cut a part of given size out of a picture, at a random place.

    Args:
        size: Columns and rows.
        padding: Black columns and rows that are put around the picture before.
    """

    def __init__(self, size: tuple[int, int] = (32, 32), padding: int = 0) -> None:
        super().__init__()
        if min(size) < 1 or padding < 0:
            raise ValueError(f"RandomCrop: size is positive and padding not negative; found {tuple(size)}, {padding}")
        self.size, self.padding = size, padding
        self.args_names = ["size", "padding"]

    def move(self, shape: Sequence[int]) -> Frame:
        """Draw the place; a shorter side is padded evenly."""
        places = []
        for side, wanted, share in zip(shape[1:3], self.size, torch.rand(2).tolist(), strict=True):
            free = side + 2 * self.padding - wanted
            places.append(int(share * (free + 1)) - self.padding if free >= 0 else (side - wanted) // 2)
        return Frame(_pair(places), _pair(self.size), _pair(self.size))


class ResizePicture(PictureTransform):
    """Resize a picture so that its short side gets a length; the ratio of the sides stays.

    Args:
        short: Length of the short side.
        longest: The long side gets no longer than this, and then the short one is shorter; `null` for no bound.
        kwargs: Those of TorchIO's transforms.
    """

    carries_boxes = True

    def __init__(self, short: int, longest: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_lengths("ResizePicture", [short], longest)
        self.short, self.longest = short, longest
        self.args_names = ["short", "longest"]

    def move(self, shape: Sequence[int]) -> Frame:
        """Return the movement of a picture of such sides."""
        sides = shape[1], shape[2]
        factor = self.short / min(sides)
        if self.longest is not None:
            factor = min(factor, self.longest / max(sides))
        return Frame((0, 0), sides, _pair([max(1, round(side * factor)) for side in sides]))


class RandomResizePicture(PictureTransform, RandomTransform):
    """Resize a picture so that its short side gets one of several lengths, each equally often.

    Args:
        short: Lengths of the short side.
        longest: As of `ResizePicture`.
    """

    carries_boxes = True

    def __init__(self, short: list[int], longest: int | None = None) -> None:
        super().__init__()
        check_lengths("RandomResizePicture", short, longest)
        self.short, self.longest = short, longest

    def drawn(self) -> ResizePicture:
        """Choose the length."""
        return ResizePicture(self.short[int(torch.randint(len(self.short), ()))], self.longest)

    def move(self, shape: Sequence[int]) -> Frame:
        """Choose the length, and return the movement."""
        return self.drawn().move(shape)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Choose the length, and resize all images of a subject."""
        return self.drawn()(subject)


class CentreCrop(PictureTransform):
    """Cut the middle out of a picture; a shorter side is padded evenly with black.

    Args:
        size: Columns and rows.
        kwargs: Those of TorchIO's transforms.
    """

    carries_boxes = True

    def __init__(self, size: tuple[int, int] = (224, 224), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(size) < 1:
            raise ValueError(f"CentreCrop: size is positive; found {tuple(size)}")
        self.size = size
        self.args_names = ["size"]

    def move(self, shape: Sequence[int]) -> Frame:
        """Place it."""
        return _middle(shape, self.size, self.size)


def check_lengths(name: str, short: Sequence[int], longest: int | None) -> None:
    """Refuse lengths of sides that are none.

    Raises:
        ValueError: Says what was found.
    """
    if not short or min(short) < 1 or (longest is not None and longest < max(short)):
        raise ValueError(f"{name}: short is positive, and longest no less; found {short} and {longest}")


def check_picture_transforms(transforms: Sequence[Transform], boxes: bool, where: str) -> None:
    """Refuse what would turn photographs, and what boxes could not follow.

    Args:
        transforms: Of a recipe.
        boxes: There are boxes.
        where: Name of the argument.

    Raises:
        ValueError: Names the transform and what to type.
    """
    for transform in transforms:
        parts = list(flat([transform]))
        if turns := [type(each).__name__ for each in parts if isinstance(each, ToOrientation)]:
            raise ValueError(
                f"{where}: {turns[0]} would stand photographs on their heads; take it out: they are LPS, columns along "
                "i and rows along j"
            )
        if boxes and not (_follows(transform) or all(isinstance(each, IntensityTransform) for each in parts)):
            raise ValueError(
                f"{where}: boxes cannot follow {type(transform).__name__}; they follow {', '.join(FOLLOWED)}"
            )


def transformed(picture: Picture, transforms: Sequence[Transform]) -> Picture:
    """Return a picture after transforms, one after the other, as TorchIO applies them.

    Ours, and TorchIO's reversal of numbered axes, are applied to the tensor itself: a subject that is copied for each
    transform costs more than small pictures are worth.
    """
    for transform in transforms:
        if not _follows(transform):
            picture = _by_torchio(picture, transform)
            continue
        applies = transform.probability == 1 or torch.rand(1).item() <= transform.probability
        move = _move(transform, picture.image.shape) if applies else None
        picture = picture.moved(move) if move is not None else picture
    return picture


def _follows(transform: Transform) -> bool:
    numbered = isinstance(transform, RandomFlip) and all(isinstance(axis, int) for axis in transform.axes)
    return isinstance(transform, PictureTransform) or numbered


def _move(transform: Transform, shape: Sequence[int]) -> Move | None:
    if isinstance(transform, PictureTransform):
        return transform.move(shape)
    assert isinstance(transform, RandomFlip)
    drawn = torch.rand(3).tolist()  # as `RandomFlip.get_params`
    axes = tuple(axis for axis in range(3) if drawn[axis] < transform.flip_probability and axis in transform.axes)
    return Mirror(axes) if axes else None


def _by_torchio(picture: Picture, transform: Transform) -> Picture:
    image = tio.ScalarImage(tensor=picture.image.float(), affine=picture.affine)
    image = transform(tio.Subject(image=image)).get_image("image")
    return Picture(image.data, np.array(image.affine), picture.boxes)


def _middle(shape: Sequence[int], extent: Sequence[int], size: Sequence[int]) -> Frame:
    low = [(side - wanted) // 2 for side, wanted in zip(shape[1:3], extent, strict=True)]
    return Frame(_pair(low), _pair(extent), _pair(size))


def _pair(values: Sequence[int]) -> Sides:
    i, j = values
    return i, j
