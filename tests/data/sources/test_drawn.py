from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_atlas.data import ColoursToSlices, DrawnPictures, PictureDataModule


def test_the_figure_fills_its_box_and_the_ground_is_noise():
    for case in DrawnPictures(train=6).cases():
        i0, j0, _, i1, j1, _, number = map(int, case.boxes[0])
        with Image.open(next(iter(case.channels.values()))) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (64, 96, 3)
        figure = (pixels == pixels[(j0 + j1) // 2, (i0 + i1) // 2]).all(-1)
        rows, columns = np.argwhere(figure).T
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (i0, j0, i1, j1)
        share = figure.sum() / (i1 - i0) ** 2
        assert number == case.target
        assert share == pytest.approx(np.pi / 4, abs=0.06) if number == 0 else share == 1


def test_the_same_pictures_come_again_and_others_of_another_seed():
    first, again, other = (DrawnPictures(seed=seed).cases() for seed in (0, 0, 1))
    assert first == again
    assert [case.boxes for case in first] != [case.boxes for case in other]


@pytest.mark.parametrize("boxes", [True, False])
def test_it_stands_in_for_photographs(boxes):
    slices: Any = [ColoursToSlices()]
    data = PictureDataModule(DrawnPictures(), boxes=boxes, augment=slices, evaluate=slices, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 1, 96, 64, 3)
    assert data.contract.classes == ("disc", "square")
    assert ("boxes" in batch) is boxes
    assert ("target" in batch) is not boxes


def test_a_side_too_short_for_a_figure_is_refused():
    with pytest.raises(ValueError, match=r"size is \[8, 64\]"):
        DrawnPictures(size=(8, 64))
