"""The axis legend, the batch, and the shapes that data and modules share.

Axes are `batch channels i j k`. After reorientation to RAS, i runs to the right, j to the front, k upwards, so slices
lie along k. This is the memory order of TorchIO and MONAI; nnU-Net and SimpleITK arrays are the reverse (k j i).

A voxel's label is one small integer: a row of its case's table, which has a column for each class of the recipe.
"""

from typing import NamedTuple, NotRequired, TypedDict

from jaxtyping import Bool, Float, Int8, Integer, Shaped
from torch import Tensor

Image = Float[Tensor, "batch channels i j k"]
"""Intensities as the network sees them."""
Logits = Float[Tensor, "batch outputs i j k"]
"""What a segmentation network returns; with softmax, output 0 is the background."""
Label = Integer[Tensor, "batch i j k"]
"""Rows of the table below. Row 0 always means: nobody decided on anything here."""
States = Int8[Tensor, "batch rows classes"]
"""1: the voxel is in the class, 0: it is not, -1: that is not known."""
Drawn = Bool[Tensor, "batch rows classes"]
"""Somebody decided on this class here; what only follows from another class is known but not drawn."""
Background = Int8[Tensor, "batch rows"]
"""1: the voxel is in no class, 0: it is in some class, if perhaps not known in which, -1: that is not known."""


class Prediction(NamedTuple):
    """What is predicted of each voxel: a row of a small table, as in a label, so that classes may overlap.

    Args:
        rows: Row 0 is in no class.
        inside: Whether a voxel of that row is in the class; tables are padded with rows that do not occur.
    """

    rows: Integer[Tensor, "batch i j k"]
    inside: Bool[Tensor, "batch rows classes"]


class ScanPrediction(NamedTuple):
    """What is predicted of whole scans.

    Args:
        values: A probability for each class or label, or numbers in the targets' own units.
    """

    values: Float[Tensor, "batch outputs"]


class Boxes(NamedTuple):
    """Boxes in one image, in voxels: a voxel n reaches from n to n + 1, so a box ends behind its last voxel.

    Args:
        corners: The low corner i, j, k, then the high one.
        classes: Number of each box's class.
        scores: Of predicted boxes, from 0 to 1.
    """

    corners: Float[Tensor, "boxes 6"]
    classes: Integer[Tensor, " boxes"]
    scores: Float[Tensor, " boxes"] | None = None

    def chosen(self, which: Bool[Tensor, " boxes"] | Integer[Tensor, " some"]) -> "Boxes":
        """Return some of the boxes, in the order asked for.

        Args:
            which: Whether each is wanted, or the numbers of those that are.
        """
        return Boxes(self.corners[which], self.classes[which], None if self.scores is None else self.scores[which])


class Batch(TypedDict):
    """What a data module yields and a module takes; tables are padded with rows that mean *unknown*."""

    image: Image
    label: Label
    states: States
    drawn: Drawn
    background: Background
    spacing_mm: Float[Tensor, "batch 3"]
    affine: Float[Tensor, "batch 4 4"]
    index: Integer[Tensor, " batch"]
    """The case's position in its split, by which ranks drop what a sampler had to repeat."""
    subject: list[str]
    target: NotRequired[Shaped[Tensor, "batch ..."]]
    """Of each whole image, where the data say it: the number of its class (-1: not known), or a row of labels (1 or 0)
    or of values (NaN: not known)."""
    boxes: NotRequired[list[Boxes]]
    """Of each image, where the data have them."""
    seed: Integer[Tensor, " batch"]
    """Of each sample's random changes, where these are made on the device."""
