import numpy as np
import pytest
import torch

from lightning_atlas.data.labels.classes import ClassMap
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.tasks import MultiLabelSegmentation, Segmentation
from lightning_atlas.tasks.translated import TranslatedTask

WINDOW = SlidingWindow((8, 8, 8), overlap=0.0)
OWN = ("kidney_left", "kidney_right", "liver")


def union(table):
    """Kidneys in one, then the liver: what a recipe with these two classes would read."""
    return torch.stack([table[:, 0] | table[:, 1], table[:, 2]], 1)


def test_predictions_are_read_in_the_classes_of_the_data():
    logits = torch.zeros(1, 4, 1, 1, 4)
    for voxel, output in enumerate((0, 1, 2, 3)):
        logits[0, output, 0, 0, voxel] = 5
    task = TranslatedTask(Segmentation(WINDOW), OWN, union)
    task.setup(("kidney", "liver"))
    assert task.outputs(("kidney", "liver")) == 4
    rows, inside = task.decode(logits)
    assert inside[0][rows[0, 0, 0].long()].tolist() == [[False, False], [True, False], [True, False], [False, True]]
    expected = torch.stack([logits.softmax(1)[:, 1:3].sum(1), logits.softmax(1)[:, 3]], 1)
    assert torch.allclose(task.probabilities(logits), expected)


def test_of_classes_that_overlap_the_highest_probability_stands_for_a_union():
    logits = torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1, 1)
    task = TranslatedTask(MultiLabelSegmentation(WINDOW), OWN, union)
    found = task.probabilities(logits).flatten()
    assert torch.allclose(found, torch.tensor([2.0, 0.5]).sigmoid())


def test_a_class_map_reads_a_tumor_as_part_of_its_organ():
    """What `test --weights` does: the weights' classes are read as a dataset's names are."""
    classes = ClassMap({"pancreas": frozenset({"pancreas"})})
    names = ("pancreas", "pancreas_tumor")
    states = np.array([[0, 0], [1, 0], [0, 1]], dtype=np.int8)
    found = classes.table(states, np.ones(states.shape, dtype=bool), names).states
    assert found.flatten().tolist() == [0, 1, 1]


def test_nothing_is_learned():
    with pytest.raises(ValueError, match=r"name them in model\.weights and fit"):
        TranslatedTask(Segmentation(WINDOW), OWN, union).loss(torch.zeros(1, 4, 1, 1, 1), {})  # pyright: ignore[reportArgumentType]
