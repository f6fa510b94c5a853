from collections import Counter

import pytest
import torch

from lightning_atlas.pyramid import coarser

NAMES = 3
STATES = torch.tensor([[-1] * 3, [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, -1], [1, 0, -1]])
DRAWN = STATES >= 0
BACKGROUND = torch.tensor([-1, 1, 0, 0, 0, 1, -1, 0])


def tables(batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    states, background = STATES.to(torch.int8), BACKGROUND.to(torch.int8)
    return states.expand(batch, -1, -1), DRAWN.expand(batch, -1, -1), background.expand(batch, -1)


def whole(shape=(2, 9, 7, 8), rows=5, seed=0):
    return torch.randint(1, rows, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def cells(label, factor):
    """Each coarse voxel with its voxels, by slicing."""
    for batch, volume in enumerate(label):
        for i in range(0, volume.shape[0], factor[0]):
            for j in range(0, volume.shape[1], factor[1]):
                for k in range(0, volume.shape[2], factor[2]):
                    cell = volume[i : i + factor[0], j : j + factor[1], k : k + factor[2]]
                    yield (batch, i // factor[0], j // factor[1], k // factor[2]), cell


@pytest.mark.parametrize("factor", [(2, 2, 2), (4, 4, 2), (1, 3, 2)])
@pytest.mark.parametrize("known", [1.0, 0.3])
def test_the_most_frequent_known_row_wins(factor, known):
    """Counted one by one; sizes need not be multiples."""
    label = whole()
    label[torch.rand(label.shape) > known] = 0
    coarse = coarser(label, *tables(2), factor)
    assert coarse.dtype == label.dtype
    assert list(coarse.shape[1:]) == [-(-size // step) for size, step in zip(label.shape[1:], factor, strict=True)]
    for place, cell in cells(label, factor):
        counts = Counter(row for row in cell.flatten().tolist() if row)
        most = max(counts.values(), default=0)
        assert coarse[place] == min((row for row, count in counts.items() if count == most), default=0)


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("factor", [(2, 2, 2), (4, 4, 4)])
def test_sparse_planes_stay(axis, factor):
    label = whole((1, 8, 8, 8))
    sparse = torch.zeros_like(label)
    sparse.movedim(axis, 0)[[1, 6]] = label.movedim(axis, 0)[[1, 6]]
    coarse = coarser(sparse, *tables(1), factor).movedim(axis, 0)
    for plane in (1, 6):
        alone = label.movedim(axis, 0)[[plane]].movedim(0, axis)
        flat = [1 if each == axis - 1 else step for each, step in enumerate(factor)]
        expected = coarser(alone, *tables(1), (flat[0], flat[1], flat[2])).movedim(axis, 0)[0]
        assert torch.equal(coarse[plane // factor[0]], expected)
    assert (coarse != 0).flatten(1).any(dim=1).sum() == 2


def test_a_class_that_was_drawn_on_some_planes_keeps_them():
    """Rows 6 and 7 leave the third class open; only plane 4 knows it."""
    label = torch.full((1, 4, 4, 8), 6)
    label[..., 4] = 1
    label[:, :2, :2, 4] = 4
    coarse = coarser(label, *tables(1), (2, 2, 2))
    assert (coarse[..., 2] == torch.tensor([[4, 1], [1, 1]])).all()
    assert (coarse[..., [0, 1, 3]] == 6).all()


def test_a_coarse_label_is_not_outvoted_by_what_is_known_better():
    label = torch.ones(1, 4, 4, 4, dtype=torch.int64)
    label[:, :3] = 7
    assert coarser(label, *tables(1), (2, 2, 2)).tolist() == [[[[7] * 2] * 2, [[1] * 2] * 2]]


def test_rows_of_one_meaning_count_together():
    """Rows 1 and 5 mean the same; together they are more than row 2."""
    label = torch.tensor([1, 1, 5, 5, 5, 2, 2, 2]).view(1, 2, 2, 2)
    assert coarser(label, *tables(1), (2, 2, 2)).item() == 1
    label = torch.tensor([1, 1, 5, 5, 2, 2, 2, 2]).view(1, 2, 2, 2)
    assert coarser(label, *tables(1), (2, 2, 2)).item() == 1
    label = torch.tensor([1, 1, 5, 2, 2, 2, 2, 2]).view(1, 2, 2, 2)
    assert coarser(label, *tables(1), (2, 2, 2)).item() == 2


def test_a_coarse_label_and_what_is_left_over_stay_apart():
    """Rows 6 and 7 say the same of each class, but only what row 7 marks is known to be in one of the open ones."""
    states, drawn, background = (each.clone() for each in tables(2))
    states[:, 7], drawn[:, 7] = states[:, 6], drawn[:, 6]
    label = torch.tensor([[6, 6, 6, 6, 6, 7, 7, 7], [7, 7, 7, 7, 7, 6, 6, 6]]).view(2, 2, 2, 2)
    assert coarser(label, states, drawn, background, (2, 2, 2)).flatten().tolist() == [6, 7]


def test_each_case_has_its_own_table():
    states, drawn, background = (each.clone() for each in tables(2))
    states[1, 3], drawn[1, 3] = states[1, 2], drawn[1, 2]
    label = torch.tensor([1, 1, 1, 2, 2, 3, 3, 0]).view(1, 2, 2, 2).expand(2, -1, -1, -1)
    assert coarser(label, states, drawn, background, (2, 2, 2)).flatten().tolist() == [1, 2]
