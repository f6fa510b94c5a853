from typing import Any

import pytest
import torch

from lightning_atlas.callbacks.baseline import NearestPlaneBaseline, nearest_plane


@pytest.mark.parametrize("planes", [(6, 13), (0,), (3, 4, 9), tuple(range(16))], ids=str)
def test_each_plane_copies_the_nearest_that_was_drawn(planes):
    label = torch.zeros(5, 4, 16, dtype=torch.uint8)
    label[:, :, list(planes)] = torch.randint(1, 5, (5, 4, len(planes)), dtype=torch.uint8)
    copy = nearest_plane(label)
    assert copy is not None
    for k in range(16):
        nearest = min(planes, key=lambda plane: (abs(plane - k), plane))
        for i in range(5):
            for j in range(4):
                assert copy[i, j, k] == label[i, j, nearest]


def test_where_nothing_was_drawn_there_is_no_copy():
    assert nearest_plane(torch.zeros(3, 3, 3, dtype=torch.uint8)) is None


def test_a_training_case_scores_one_against_itself(module, data, make_trainer):
    baseline = NearestPlaneBaseline()
    make_trainer(baseline, enable_progress_bar=False).test(module, data, verbose=False)
    assert baseline.result is not None
    assert baseline.result.mean == 1
    assert len(baseline.result.index) == 4


def test_classes_that_overlap_are_copied_as_they_are_and_what_is_open_is_not_predicted(
    module, data, make_trainer, monkeypatch
):
    """The second class lies in the first; in half of it nobody drew the second."""
    states = torch.tensor([[-1, -1], [0, 0], [1, 1], [1, -1]], dtype=torch.int8)
    tables = {"states": states[None], "drawn": (states >= 0)[None]}
    case: Any = {**data.whole("train", 0), **tables}
    monkeypatch.setattr(data, "whole", lambda split, n: case)
    baseline = NearestPlaneBaseline()
    trainer = make_trainer(baseline, enable_progress_bar=False)
    trainer.datamodule = data
    baseline.on_test_start(trainer, module)
    tested: Any = {**case, "drawn": torch.ones_like(tables["drawn"]), "states": (states == 1).to(torch.int8)[None]}
    baseline.on_test_batch_end(trainer, module, None, tested, 0)
    baseline.on_test_epoch_end(trainer, module)
    assert baseline.result is not None
    assert baseline.result.dice.tolist() == [[1, 1]]
    predicted = torch.tensor([27 + 27, 27]) * 0.02
    torch.testing.assert_close(baseline.result.predicted_ml[0].float(), predicted)


def test_it_says_so_where_the_grids_differ(module, data, make_data, make_trainer, monkeypatch):
    monkeypatch.setattr(data, "whole", make_data(size=(8, 8, 6)).whole)
    baseline = NearestPlaneBaseline()
    make_trainer(baseline, enable_progress_bar=False).test(module, data, verbose=False)
    assert baseline.result is None
    assert "another grid" in baseline.note
