import pytest
import torch

from lightning_atlas.callbacks.baseline import NearestPlaneBaseline, nearest_plane, row_values

# Rows: unknown, background, first class, second class, not the first class but perhaps the second.
STATES = torch.tensor([[-1, -1], [0, 0], [1, 0], [0, 1], [0, -1]], dtype=torch.int8)


def test_rows_become_what_a_perfect_prediction_says():
    assert row_values(STATES).tolist() == [-1, 0, 1, 2, -1]


@pytest.mark.parametrize("planes", [(6, 13), (0,), (3, 4, 9), tuple(range(16))], ids=str)
def test_each_plane_copies_the_nearest_that_was_drawn(planes):
    label = torch.zeros(5, 4, 16, dtype=torch.uint8)
    label[:, :, list(planes)] = torch.randint(1, 5, (5, 4, len(planes)), dtype=torch.uint8)
    prediction = nearest_plane(label, STATES)
    assert prediction is not None
    for k in range(16):
        nearest = min(planes, key=lambda plane: (abs(plane - k), plane))
        for i in range(5):
            for j in range(4):
                row = int(label[i, j, nearest])
                expected = {1: 0, 2: 1, 3: 2, 4: 0}[row]
                assert prediction[i, j, k] == expected


def test_where_nothing_was_drawn_there_is_no_copy():
    assert nearest_plane(torch.zeros(3, 3, 3, dtype=torch.uint8), STATES) is None


def test_a_training_case_scores_one_against_itself(module, data, make_trainer):
    baseline = NearestPlaneBaseline()
    make_trainer(baseline, enable_progress_bar=False).test(module, data, verbose=False)
    assert baseline.result is not None
    assert baseline.result.mean == 1
    assert len(baseline.result.index) == 4


def test_it_says_so_where_the_grids_differ(module, data, make_data, make_trainer, monkeypatch):
    monkeypatch.setattr(data, "whole", make_data(size=(8, 8, 6)).whole)
    baseline = NearestPlaneBaseline()
    make_trainer(baseline, enable_progress_bar=False).test(module, data, verbose=False)
    assert baseline.result is None
    assert "another grid" in baseline.note
