"""What the benchmark counts, on volumes whose numbers are known."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def bench():
    spec = spec_from_file_location("bench_sparse_planes", Path(__file__).with_name("bench_sparse_planes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_planes_are_told_by_their_distance_from_a_drawn_one(bench):
    reference = np.ones((4, 4, 11), np.uint8)
    predicted = np.zeros_like(reference)
    predicted[:, :, [0, 5, 10]] = 1  # right where it was drawn
    predicted[:2, :, [1, 4, 6, 9]] = 1  # half beside
    assert bench.by_distance(predicted, reference, 1) == pytest.approx({0: 1.0, 1: 2 / 3, 2: 0.0})


def test_what_changes_from_plane_to_plane_is_not_steady(bench):
    still = np.ones((4, 4, 6), np.uint8)
    flicker = still * (np.arange(6) % 2).astype(np.uint8)
    assert bench.steadiness(still, 1) == 1.0
    assert bench.steadiness(flicker, 1) == 0.0
    assert np.isnan(bench.dice(still * 0, still * 0, 1))
