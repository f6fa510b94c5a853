import pytest
import torch
from monai.data.box_utils import batched_nms

from lightning_atlas.networks.detection.suppression import BoxSelection, clipped, suppressed


def candidates(count, axes, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, axes, generator=generator) * 40
    corners = torch.cat([low, low + 4 + torch.rand(count, axes, generator=generator) * 20], dim=1)
    return corners, torch.rand(count, generator=generator), torch.randint(3, (count,), generator=generator)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("overlap", [0.1, 0.5])
def test_what_is_kept_is_what_monai_keeps(axes, overlap):
    for seed in range(5):
        given = candidates(150, axes, seed)
        kept, theirs = suppressed(*given, overlap), batched_nms(*given, overlap)
        assert kept.tolist() == theirs.tolist()


@pytest.mark.parametrize("most", [None, 4, 30])
def test_many_boxes_are_asked_in_blocks_without_a_difference(most, monkeypatch):
    monkeypatch.setattr("lightning_atlas.networks.detection.suppression.BLOCK", 16)
    for seed in range(5):
        given = candidates(150, 3, seed)
        assert suppressed(*given, 0.2, most).tolist() == batched_nms(*given, 0.2).tolist()[:most]


def test_a_box_that_is_suppressed_suppresses_none():
    row = torch.tensor([[0.0, 0.0, 10.0, 1.0], [4.0, 0.0, 14.0, 1.0], [8.0, 0.0, 18.0, 1.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert suppressed(row, scores, torch.zeros(3, dtype=torch.long), 0.3).tolist() == [0, 2]
    assert suppressed(row, scores, torch.arange(3), 0.3).tolist() == [0, 1, 2]
    assert suppressed(row, scores, torch.zeros(3, dtype=torch.long), 0.3, most=1).tolist() == [0]


def test_of_nothing_nothing_is_kept():
    assert not len(suppressed(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5))


def test_boxes_are_cut_to_the_image():
    assert clipped(torch.tensor([[-2.0, 1.0, 3.0, 99.0]]), (4, 8)).tolist() == [[0.0, 1.0, 3.0, 8.0]]


def test_a_selection_takes_the_best_and_no_box_without_extent():
    selection = BoxSelection(least_score=0.2, candidates=3, overlap=0.5, most=2)
    anchors, classes = selection.best(torch.tensor([[0.1, 0.9], [0.3, 0.25], [0.19, 0.0]]))
    assert (anchors.tolist(), classes.tolist()) == ([0, 1, 1], [1, 0, 1])
    corners = torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 9.0, 9.0], [1.0, 7.0, 2.0, 8.0]])
    kept = selection.kept(corners, torch.tensor([0.9, 0.3, 0.25, 0.24]), torch.zeros(4, dtype=torch.long))
    assert kept.tolist() == [1, 2]
