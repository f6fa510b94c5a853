import torch

from lightning_atlas.callbacks.layering import looked_up, row_values, topmost


def test_the_last_class_lies_on_top():
    inside = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)
    assert topmost(inside).tolist() == [0, 1, 2, 3, 3]
    assert topmost(torch.eye(5).bool()).tolist() == [1, 2, 3, 4, 5]


def test_a_row_is_seen_as_the_last_class_that_it_is_known_to_be_in():
    # Unknown, outside, first, both, second, not the first but perhaps the second, first and perhaps the second.
    states = torch.tensor([[-1, -1], [0, 0], [1, 0], [1, 1], [0, 1], [0, -1], [1, -1]], dtype=torch.int8)
    assert row_values(states).tolist() == [-1, 0, 1, 2, 2, -1, 1]


def test_looking_up_is_indexing():
    table, rows = torch.randint(-1, 200, (9,)), torch.randint(9, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(looked_up(table, rows), table[rows.long()])
