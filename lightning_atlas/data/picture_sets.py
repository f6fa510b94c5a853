"""Pictures of one split, decoded when they are asked for; a sample is a pure function of (seed, epoch, index)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from torchio.transforms import Transform

from lightning_atlas.data.augmentation.pictures import Picture, transformed
from lightning_atlas.data.boxes import make_boxes
from lightning_atlas.data.formats.pictures import LPS, picture_size, read_colours
from lightning_atlas.data.patches import stream
from lightning_atlas.types import Batch, Boxes

ORDER, PICTURE = 0, 1
"""Names of the streams of random numbers."""
Told = tuple[float, ...]


class Texts:
    """Many short texts in one piece of memory, which processes share as long as nobody writes to it.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._all = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> str:
        return self._all[self._ends[n] : self._ends[n + 1]].decode()


class BoxLists:
    """The boxes of many pictures in one array.

    Args:
        told: Of each picture its boxes, each i0 j0 k0 i1 j1 k1 and perhaps the number of its class.
    """

    def __init__(self, told: Iterable[Sequence[Told]]) -> None:
        lists = list(told)
        self._ends = np.cumsum([0, *map(len, lists)])
        self._all = np.array([[*box, 0.0][:7] for boxes in lists for box in boxes], np.float32).reshape(-1, 7)

    def __getitem__(self, n: int) -> Boxes:
        return make_boxes(self._all[self._ends[n] : self._ends[n + 1]].tolist())

    @property
    def most(self) -> int:
        """The highest number of a class; -1 where there is no box."""
        return int(self._all[:, 6].max(initial=-1))


class Held:
    """Pictures that are kept in memory, decoded, side by side.

    Args:
        files: Of the pictures.
        limit: Bytes; if they all take more, none is kept.
    """

    def __init__(self, files: Texts, limit: int) -> None:
        shapes, total = [], 0
        for n in range(len(files)) if limit else ():
            i, j = picture_size(Path(files[n]))
            shapes.append((j, i, 3))
            total += 3 * i * j
            if total > limit:
                break
        self._pixels: UInt8[Tensor, " bytes"] | None = None
        self._shapes = np.array(shapes, np.int32)
        if shapes and total <= limit:
            self._ends = np.cumsum([0, *(j * i * channels for j, i, channels in shapes)])
            self._pixels = _shared(torch.empty(total, dtype=torch.uint8))
            for n in range(len(files)):
                pixels = read_colours(Path(files[n]))
                self._pixels[self._ends[n] : self._ends[n + 1]] = torch.from_numpy(pixels.reshape(-1))

    @property
    def whole(self) -> bool:
        """Whether they are kept."""
        return self._pixels is not None

    def __getitem__(self, n: int) -> UInt8[Tensor, "rows columns 3"]:
        assert self._pixels is not None
        return self._pixels[self._ends[n] : self._ends[n + 1]].view(*self._shapes[n].tolist())


def _shared(pixels: Tensor) -> Tensor:
    """Return memory that all workers share, or where there is too little of that (64 MB in a container) the own one."""
    try:
        return pixels.share_memory_()
    except RuntimeError:
        return pixels


class PictureSample(NamedTuple):
    """One picture of a batch, with its place in the split."""

    picture: Picture
    number: int
    seed: int


class Pictures:
    """The pictures of one split.

    Args:
        files: Of each picture.
        subjects: Its name.
        targets: The number of its class, or its labels or values; `None` where nothing is said of whole pictures.
        boxes: Its boxes; `None` where none are wanted.
        limit: Bytes of decoded pictures that may be kept in memory.
    """

    def __init__(
        self, files: Texts, subjects: Texts, targets: Tensor | None, boxes: BoxLists | None, limit: int
    ) -> None:
        self.files, self.subjects, self.targets, self.boxes = files, subjects, targets, boxes
        self.held = Held(files, limit)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def alike(self) -> bool:
        """Whether all files have the same sides."""
        return len({picture_size(Path(file)) for file in self.files}) <= 1

    def __getitem__(self, n: int) -> Picture:
        pixels = self.held[n] if self.held.whole else torch.from_numpy(read_colours(Path(self.files[n])))
        boxes = None if self.boxes is None else self.boxes[n]
        return Picture(pixels.permute(2, 1, 0)[..., None], LPS, boxes)


class TrainingPictures(Dataset[PictureSample]):
    """Pictures to learn from; the item (epoch, index) is always the same, whoever asks and whenever.

    Args:
        pictures: Of the split.
        per_epoch: Pictures in an epoch.
        augment: Transforms.
        seed: Another seed gives others.
    """

    def __init__(self, pictures: Pictures, per_epoch: int, augment: Sequence[Transform] = (), seed: int = 0) -> None:
        self.pictures, self.per_epoch, self.augment, self.seed = pictures, per_epoch, list(augment), seed
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, key: tuple[int, int] | int) -> PictureSample:
        epoch, index = key if isinstance(key, tuple) else (0, key)  # plain numbers: Lightning's overfit_batches
        number = self.picture_of(epoch, index)
        key_ = np.random.SeedSequence([self.seed, PICTURE, epoch, index])
        seed = int(key_.generate_state(1, np.uint64)[0] >> np.uint64(1))
        with torch.random.fork_rng(devices=[]):  # transforms draw from torch's global generator, as TorchIO's do
            torch.default_generator.manual_seed(seed)
            return PictureSample(transformed(self.pictures[number], self.augment), number, seed)

    def picture_of(self, epoch: int, index: int) -> int:
        """Return the picture of a sample: in each round every one comes once, in an order of its own."""
        around, place = divmod(index, len(self.pictures))
        if self._order is None or self._order[0] != (epoch, around):
            order = stream(self.seed, ORDER, epoch, around).permutation(len(self.pictures))
            self._order = (epoch, around), order
        return int(self._order[1][place])


class WholePictures(Dataset[PictureSample]):
    """Pictures to score, each as it always is.

    Args:
        pictures: Of the split.
        evaluate: Transforms, of which none draws.
    """

    def __init__(self, pictures: Pictures, evaluate: Sequence[Transform] = ()) -> None:
        self.pictures, self.evaluate = pictures, list(evaluate)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, n: int) -> PictureSample:
        return PictureSample(transformed(self.pictures[n], self.evaluate), n, 0)


class PictureBatches:
    """Makes batches: numbers of bytes, by one mean and deviation for all planes; nothing of voxels is known.

    Smaller pictures get a rim of the mean behind their last columns and rows, so boxes stay where they are.

    Args:
        pictures: Of the split.
        mean: Of bytes.
        deviation: Of bytes.
        alike: Refuse pictures of unlike sizes: what a network says of one must not depend on the others.
    """

    def __init__(self, pictures: Pictures, mean: float, deviation: float, alike: bool = False) -> None:
        self.pictures, self.mean, self.deviation, self.alike = pictures, mean, deviation, alike

    def __call__(self, samples: Sequence[PictureSample]) -> Batch:
        """Stack samples.

        Raises:
            ValueError: Some have other channels or slices, or other sides where all must be alike.
        """
        numbers = [sample.number for sample in samples]
        image = self._stacked([sample.picture.image for sample in samples])
        count, size = len(samples), tuple(image.shape[2:])
        affine = torch.from_numpy(np.stack([sample.picture.affine for sample in samples])).float()
        batch: Batch = {
            "image": image,
            "label": torch.zeros((), dtype=torch.int16).expand(count, *size),
            "states": torch.full((count, 1, 0), -1, dtype=torch.int8),
            "drawn": torch.zeros((count, 1, 0), dtype=torch.bool),
            "background": torch.full((count, 1), -1, dtype=torch.int8),
            "spacing_mm": affine[:, :3, :3].norm(dim=1),
            "affine": affine,
            "index": torch.tensor(numbers),
            "subject": [self.pictures.subjects[number] for number in numbers],
            "seed": torch.tensor([sample.seed for sample in samples]),
        }
        if self.pictures.targets is not None:
            batch["target"] = self.pictures.targets[numbers]
        if self.pictures.boxes is not None:
            batch["boxes"] = [sample.picture.boxes for sample in samples if sample.picture.boxes is not None]
        return batch

    def _stacked(self, images: Sequence[Tensor]) -> Float[Tensor, "batch channels i j k"]:
        kinds = {(image.shape[0], image.shape[3]) for image in images}
        if len(kinds) > 1:
            found = " and ".join(f"{channels} x {planes}" for channels, planes in sorted(kinds))
            raise ValueError(f"pictures of one batch have {found} channels and slices: let no transform of them draw p")
        sides = {tuple(image.shape[1:3]) for image in images}
        if self.alike and len(sides) > 1:
            found = " and ".join(f"{i} x {j}" for i, j in sorted(sides)[:2])
            raise ValueError(
                f"pictures of {found} in one batch: let evaluate end with CentreCrop, or set "
                "data.init_args.evaluation_batch_size: 1"
            )
        (channels, planes), (i, j) = kinds.pop(), (max(image.shape[axis] for image in images) for axis in (1, 2))
        stacked = torch.empty((len(images), channels, i, j, planes))
        for place, image in zip(stacked, images, strict=True):
            if image.shape[1:3] != (i, j):
                place.fill_(self.mean)
            place[:, : image.shape[1], : image.shape[2]].copy_(image.contiguous())  # as bytes it is quick
        return stacked.sub_(self.mean).div_(self.deviation)
