import pytest
import torch

from lightning_atlas.adaptation.inflation import head_rows, output_names, same_names


def test_outputs_are_background_then_classes_and_a_count_that_differs_says_nothing():
    assert output_names(3, ("liver", "spleen")) == ("background", "liver", "spleen")
    assert output_names(2, ("liver", "spleen")) is None
    assert output_names(1, ()) is None


def test_same_names_ignores_order_and_position():
    assert same_names(("background", "spleen", "liver", "colon"), ("background", "liver", "eye")) == {0: 0, 1: 2}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_the_same_name_are_the_source_and_the_others_stay(axis, dtype):
    source = torch.randn(4, 4, 2, 2, 2).to(dtype)
    target = torch.randn(3, 4, 2, 2, 2) if axis == 0 else torch.randn(4, 3, 2, 2, 2)
    before = target.clone()
    result = head_rows(target, source, {0: 0, 2: 3}, axis)
    for ours, theirs in ((0, 0), (2, 3)):
        assert torch.equal(result.unbind(axis)[ours], source.unbind(axis)[theirs].float())
    assert torch.equal(result.unbind(axis)[1], before.unbind(axis)[1])
    assert torch.equal(target, before)
    assert result.dtype == torch.float32
