"""Prediction of whole volumes, window by window."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor
from torch.nn import functional as F

from lightning_atlas.types import Image, Logits


class SlidingWindow:
    """Predicts overlapping windows and averages their logits, with most weight at the middle of each.

    Of a network that says nothing of the faces of a window (`context`), what windows predict is laid side by side on
    the network's own grid, so that the result is the one of a single large window; images are padded for it.

    Args:
        patch: Sides of the window along i, j, k in voxels. A smaller image is padded with its least value.
        overlap: Share of a side by which neighbours overlap, of the voxels that are predicted: at least 0, less than 1.
        batch_size: Windows that the network sees at once.
        on_host: Gather the logits of the whole image in the host's memory, for images whose logits a GPU cannot hold.
        mirror: Average over the windows mirrored along every choice of the axes that training mirrored: for three axes
            this takes eight times as long.
    """

    def __init__(
        self,
        patch: tuple[int, int, int] = (96, 96, 96),
        overlap: float = 0.5,
        batch_size: int = 1,
        on_host: bool = False,
        mirror: bool = False,
    ) -> None:
        if min(patch) < 1:
            raise ValueError(f"window: each side of patch must be at least 1 voxel, found {list(patch)}")
        if not 0 <= overlap < 1:
            raise ValueError(f"window: overlap must be at least 0 and less than 1, found {overlap}")
        if batch_size < 1:
            raise ValueError(f"window: batch_size must be at least 1, found {batch_size}")
        self.patch = patch
        self.overlap = overlap
        self.batch_size = batch_size
        self.on_host = on_host
        self.mirror = mirror
        self.reversals: list[tuple[int, ...]] = []
        self.pairs: list[tuple[int, int]] = []

    def set_mirroring(self, axes: Sequence[str], pairs: Sequence[tuple[int, int]] = ()) -> None:
        """Take over along which axes training mirrored.

        Args:
            axes: Of `i`, `j`, `k`, as in the contract.
            pairs: Outputs of classes that are each other's mirror image. They change places where the window was
                mirrored along an odd number of axes; two mirrorings are half a turn.

        Raises:
            ValueError: `mirror` is asked for, and there is no axis.
        """
        if not self.mirror:
            return
        if not axes:
            raise ValueError(
                "window: mirror: true averages over the axes along which training mirrored, and it mirrored none; "
                "write mirror: false, or mirror in `augment`"
            )
        numbers = sorted("ijk".index(axis) for axis in axes)
        self.reversals = list(chain.from_iterable(combinations(numbers, n + 1) for n in range(len(numbers))))
        self.pairs = list(pairs)

    def __call__(self, network: Callable[[Tensor], Tensor], image: Image) -> Logits:
        """Return the logits of whole images, in float32, on the images' device or the host.

        Raises:
            ValueError: The network cannot take windows of these sides, or `mirror` is asked for and nobody has said
                along which axes training mirrored.
        """
        if self.mirror and not self.reversals:
            raise ValueError("window: mirror: true needs the axes along which training mirrored; call set_mirroring")
        multiple = getattr(network, "size_multiple", 1)
        steps = (multiple,) * 3 if isinstance(multiple, int) else multiple
        least, context = getattr(network, "size_offset", 0), getattr(network, "context", 0)
        if least - 2 * context < max(steps) and context:  # neighbours that lie a multiple apart must meet
            least += max(steps)
        fitting = [least - min(0, least - side) // step * step for side, step in zip(self.patch, steps, strict=True)]
        if fitting != list(self.patch):
            taken = f"{least} voxels, or {multiple} more, and so on" if least else f"multiples of {multiple}"
            raise ValueError(
                f"window: {type(network).__name__} takes sides that are {taken}, "
                f"found patch {list(self.patch)}; try patch: {fitting}"
            )

        def predict(window: Tensor) -> Tensor:
            # A copy, and logits in float32: MONAI weights the answer in place, which may be a view of the image.
            return self._mirrored_mean(network, window.to(image.dtype, copy=True))

        if context:
            return self._laid_out(predict, image.float(), context, steps)
        logits = sliding_window_inference(
            image.float(),
            roi_size=self.patch,
            sw_batch_size=self.batch_size,
            predictor=predict,
            overlap=self.overlap,
            mode="gaussian",
            cval=image.min().item(),
            device=torch.device("cpu") if self.on_host else image.device,
        )
        return torch.as_tensor(logits)

    def _laid_out(
        self, predict: Callable[[Tensor], Tensor], image: Image, context: int, steps: Sequence[int]
    ) -> Logits:
        """Return the mean of windows whose faces lack `context` voxels, each a multiple of `steps` from the others."""
        tiles = [side - 2 * context for side in self.patch]
        strides = [
            max(1, int(tile * (1 - self.overlap)) // step) * step for tile, step in zip(tiles, steps, strict=True)
        ]
        sides = image.shape[2:]
        counts = [
            1 + max(0, -(-(side - tile) // stride)) for side, tile, stride in zip(sides, tiles, strides, strict=True)
        ]
        grid = [tile + stride * (count - 1) for tile, stride, count in zip(tiles, strides, counts, strict=True)]
        behind = [context + whole - side for whole, side in zip(grid, sides, strict=True)]
        faces = [each for side in reversed(behind) for each in (context, side)]
        padded = F.pad(image, faces, value=image.min().item())
        device = torch.device("cpu") if self.on_host else image.device
        total, seen = torch.zeros(0), torch.zeros(1, 1, *grid, device=device)
        starts = (range(0, stride * count, stride) for stride, count in zip(strides, counts, strict=True))
        places = list(product(*starts))
        for first in range(0, len(places), self.batch_size):
            group = places[first : first + self.batch_size]
            windows = torch.cat([padded[:, :, *_box(place, self.patch)] for place in group])
            for place, logits in zip(group, predict(windows).to(device).split(len(image)), strict=True):
                total = total if len(total) else logits.new_zeros(*logits.shape[:2], *grid)
                total[:, :, *_box(place, tiles)] += logits
                seen[:, :, *_box(place, tiles)] += 1
        i, j, k = sides
        return total.div_(seen)[:, :, :i, :j, :k]

    def _mirrored_mean(self, network: Callable[[Tensor], Tensor], window: Tensor) -> Tensor:
        answer = network(window)
        if not isinstance(answer, Tensor):
            raise TypeError(
                f"window: {type(network).__name__} returned {len(answer)} outputs, expected one tensor of logits; "
                "call eval() on a network with deep supervision"
            )
        total = answer.float()
        if not self.reversals:
            return total
        for axes in self.reversals:
            dims = [2 + axis for axis in axes]
            logits = network(window.flip(dims)).float().flip(dims)
            total = total + (self._exchanged(logits) if len(axes) % 2 else logits)
        return total / (1 + len(self.reversals))

    def _exchanged(self, logits: Tensor) -> Tensor:
        order = list(range(logits.shape[1]))
        for one, other in self.pairs:
            order[one], order[other] = other, one
        return logits[:, order]


def _box(start: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(low, low + side) for low, side in zip(start, sides, strict=True))
