from math import floor

import pytest
import torch

from lightning_atlas.networks.detection.roi_align import roi_align


def naive(features, box, reduction, size, points):
    """Interpolate between the four nearest middles, point after point, as the paper says."""
    result = torch.zeros(features.shape[0], size, size)
    for a in range(size):
        for b in range(size):
            for p in range(points):
                for q in range(points):
                    position = []
                    for axis, (cell, point) in enumerate(((a, p), (b, q))):
                        low, high = box[axis] / reduction[axis], box[axis + 2] / reduction[axis]
                        where = low + (cell + (point + 0.5) / points) * (high - low) / size - 0.5
                        position.append(min(max(where, 0.0), features.shape[axis + 1] - 1.0))
                    result[:, a, b] += between(features, *position) / points**2
    return result


def between(features, i, j):
    total = torch.zeros(features.shape[0])
    for row in (floor(i), floor(i) + 1):
        for column in (floor(j), floor(j) + 1):
            share = max(0.0, 1 - abs(i - row)) * max(0.0, 1 - abs(j - column))
            if share:
                total += share * features[:, row, column]
    return total


@pytest.mark.parametrize("points", [1, 2])
def test_regions_are_those_of_a_loop_over_the_points(points):
    features = torch.randn(3, 9, 6, generator=torch.Generator().manual_seed(0))
    boxes = [[3.0, 1.0, 20.0, 17.5], [0.0, 0.0, 36.0, 24.0], [30.5, 20.0, 35.9, 23.0]]
    found = roi_align(features, torch.tensor(boxes), (4, 4), size=3, points=points)
    expected = torch.stack([naive(features, box, (4, 4), 3, points) for box in boxes])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_of_positions_it_returns_the_middles_of_the_cells():
    steps = torch.arange(16) + 0.5
    positions = torch.stack(torch.meshgrid(2 * steps, 4 * steps, indexing="ij"))
    found = roi_align(positions, torch.tensor([[6.0, 10.0, 20.0, 38.0]]), (2, 4), size=7)
    assert torch.allclose(found[0, 0, :, 0], torch.arange(7) * 2 + 7.0, atol=1e-4)
    assert torch.allclose(found[0, 1, 0], torch.arange(7) * 4 + 12.0, atol=1e-4)


def test_every_cell_gives_its_gradient_away_in_full():
    features = torch.randn(2, 8, 8, requires_grad=True)
    weights = torch.rand(2, 2, 5, 5)
    (
        roi_align(features, torch.tensor([[1.0, 2.0, 7.0, 9.0], [0.0, 0.0, 16.0, 16.0]]), (2, 2), 5) * weights
    ).sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad.sum(dim=(1, 2)), weights.sum(dim=(0, 2, 3)))


def test_without_boxes_there_are_no_regions():
    assert roi_align(torch.zeros(2, 4, 4), torch.zeros(0, 4), (2, 2), 7).shape == (0, 2, 7, 7)
