"""Colour pictures as small volumes: three colours are three slices."""

from torchio import Image, LabelMap, Subject
from torchio.transforms import SpatialTransform


class ColoursToSlices(SpatialTransform):
    """Make the three colour channels of a picture the three slices of one channel, so that a 3D network can read it.

    Nothing is computed: the channel axis becomes k, `(3, i, j, 1)` becomes `(1, i, j, 3)`. Labels of a picture are
    repeated on each slice. `inverse` goes back.

    Source: the Variable Dimension Transform, Zhang et al. 2022, *Advancing 3D Medical Image Analysis with Variable
    Dimension Transform based Supervised 3D Pre-training*, arXiv:2201.01426.
    Differs: the slices keep the order red, green, blue.
    """

    def __init__(self, back: bool = False) -> None:
        super().__init__()
        self.back = back
        self.args_names = ["back"]

    def apply_transform(self, subject: Subject) -> Subject:
        """Exchange the axes of each image of a subject.

        Raises:
            ValueError: An image is no colour picture of one plane, or, going back, has not one channel of three slices.
        """
        for image in self.get_images(subject):
            self._check(image)
            if not isinstance(image, LabelMap):
                image.set_data(image.data.movedim((0, 3), (3, 0)))
            elif self.back:
                image.set_data(image.data[..., :1])
            else:
                image.set_data(image.data.expand(-1, -1, -1, 3))
        return subject

    def is_invertible(self) -> bool:
        """Return that it is."""
        return True

    def inverse(self) -> "ColoursToSlices":
        """Return the transform that goes back."""
        return ColoursToSlices(not self.back)

    def _check(self, image: Image) -> None:
        channels, planes = image.shape[0], image.shape[3]
        wanted = (1, 3) if self.back else (1 if isinstance(image, LabelMap) else 3, 1)
        if (channels, planes) != wanted:
            raise ValueError(
                f"ColoursToSlices takes {wanted[0]} channels of {wanted[1]} planes, and found {channels} of {planes}"
                f"{f' in {image.path}' if image.path else ''}; it is for colour pictures"
            )
