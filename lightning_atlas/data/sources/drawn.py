"""Pictures that are drawn, to try whether a recipe runs where there are no photographs."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lightning_atlas.data.cases import Case, Source, Split
from lightning_atlas.data.store.keys import store_root

LEAST_SIDE = 16
VERSION = 1
"""Raised when pictures of the same number would look otherwise."""


class DrawnPictures(Source):
    """One disc or square on a noisy ground in each picture; the class is the figure, and a box lies around it.

    They are drawn once, into the folder of prepared scans. They show mechanics, and nothing of the world.

    Args:
        train: Number of training pictures.
        val: Number of validation pictures.
        test: Number of test pictures.
        size: Columns and rows.
        seed: Another seed gives others.
    """

    names = ("disc", "square")

    def __init__(
        self, train: int = 8, val: int = 2, test: int = 2, size: tuple[int, int] = (96, 64), seed: int = 0
    ) -> None:
        if min(size) < LEAST_SIDE:
            raise ValueError(f"DrawnPictures: sides are {LEAST_SIDE} at least, and size is {list(size)}")
        self.sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
        self.size = size
        self.seed = seed

    def cases(self) -> list[Case]:
        """Return the pictures of each split in turn; those that are not there are drawn."""
        wide, high = self.size
        folder = store_root() / f"drawn_{VERSION}_{self.seed}_{wide}x{high}"
        folder.mkdir(parents=True, exist_ok=True)
        return [self._case(folder, split, number) for split, count in self.sizes.items() for number in range(count)]

    @property
    def description(self) -> str:
        """One line for reports: they are drawn."""
        return f"drawn discs and squares, {' + '.join(map(str, self.sizes.values()))} pictures"

    def _case(self, folder: Path, split: Split, number: int) -> Case:
        random = np.random.default_rng([self.seed, list(self.sizes).index(split), number])
        wide, high = self.size
        side = int(random.integers(min(self.size) // 4, min(self.size) // 2))
        i, j = int(random.integers(wide - side)), int(random.integers(high - side))
        target = number % 2
        file = folder / f"{split}_{number}.png"
        if not file.is_file():
            colours = random.integers(0, 256, (2, 3))
            noise = random.normal(0, 12, (high, wide, 3))
            ground = Image.fromarray((colours[0] + noise).clip(0, 255).astype(np.uint8))
            shape = ImageDraw.Draw(ground).ellipse if target == 0 else ImageDraw.Draw(ground).rectangle
            shape((i, j, i + side - 1, j + side - 1), fill=tuple(colours[1].tolist()))
            aside = file.with_suffix(f".{os.getpid()}.partial")
            ground.save(aside, format="PNG")
            aside.replace(file)
        box = (float(i), float(j), 0.0, float(i + side), float(j + side), 1.0, float(target))
        return Case(f"{split}_{number}", split, file, target=target, boxes=(box,), dataset="drawn")
