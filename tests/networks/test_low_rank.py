"""Low-rank updates of weights, held against plain layers of torch."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks.low_rank import low_rank_updates, merged

LAYERS = {
    "linear": (nn.Linear, (6, 4), {}),
    "1x1x1": (nn.Conv3d, (6, 4, 1), {}),
    "1x3x3": (nn.Conv3d, (6, 4, (1, 3, 3)), {"padding": (0, 1, 1)}),
    "strided": (nn.Conv3d, (6, 4, 3), {"stride": 2, "padding": 1}),
    "dilated": (nn.Conv3d, (6, 4, 3), {"dilation": 2, "padding": 2}),
    "grouped": (nn.Conv3d, (6, 4, 3), {"groups": 2}),
    "depthwise": (nn.Conv3d, (6, 12, 3), {"groups": 6}),
    "reflect": (nn.Conv3d, (6, 4, 3), {"padding": 1, "padding_mode": "reflect"}),
    "circular": (nn.Conv3d, (6, 4, 3), {"padding": 1, "padding_mode": "circular", "bias": False}),
    "transposed": (nn.ConvTranspose3d, (6, 4, 2), {"stride": 2}),
    "transposed, grouped": (nn.ConvTranspose3d, (6, 4, 3), {"groups": 2, "stride": 2, "output_padding": 1}),
    "square": (nn.ConvTranspose3d, (4, 4, 1), {}),
}
RANK, SCALE = 2, 0.5


def image_for(layer):
    return torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 5, 6, 7)


@pytest.fixture(params=LAYERS.values(), ids=list(LAYERS))
def layer(request):
    kind, sizes, options = request.param
    return kind(*sizes, **options)


def moved(layer: Any, seed=1) -> Any:
    """Return a copy whose update was drawn at random."""
    layer = copy.deepcopy(layer)
    low_rank_updates([layer], RANK, SCALE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in (layer.parametrizations.weight[0].A, layer.parametrizations.weight[0].B):
            matrix.copy_(torch.randn(matrix.shape, generator=generator))
    return layer


def test_before_training_the_layer_is_the_same_to_the_bit(layer):
    image, before = image_for(layer), copy.deepcopy(layer)
    low_rank_updates([layer], RANK, SCALE)
    assert torch.equal(layer(image), before(image))
    assert torch.equal(layer.weight, before.weight)


def test_a_gradient_reaches_the_matrix_that_starts_at_zero_and_not_the_weight(layer: Any):
    low_rank_updates([layer], RANK, SCALE)
    original = layer.parametrizations.weight.original.requires_grad_(False)
    layer(image_for(layer)).pow(2).sum().backward()
    update = layer.parametrizations.weight[0]
    zero, drawn = (update.A, update.B) if isinstance(layer, nn.ConvTranspose3d) else (update.B, update.A)
    assert not zero.any()
    assert drawn.any()
    assert zero.grad.any()
    assert original.grad is None


def test_the_merged_layer_computes_the_same_to_the_bit(layer):
    image, adapted = image_for(layer), moved(layer)
    plain = merged(adapted.state_dict())
    assert list(plain) == [name for name in ("bias", "weight") if name in layer.state_dict()]
    layer.load_state_dict(plain, strict=True)
    assert torch.equal(layer(image), adapted(image))
    assert not torch.equal(plain["weight"], adapted.parametrizations.weight.original)


def test_the_update_of_each_group_has_the_rank_asked_for(layer):
    adapted = moved(layer)
    change = (adapted.weight - layer.weight).detach().double()
    groups = getattr(layer, "groups", 1)
    for part in change.chunk(groups):
        matrix = part.flatten(1)
        assert torch.linalg.matrix_rank(matrix, atol=1e-5) == min(RANK, *matrix.shape)


def test_a_convolution_equals_two_convolutions_in_a_row():
    """The other way to write it (Hu et al.): through few channels, then to all, added to what the layer returns."""
    layer = nn.Conv3d(6, 4, 3, stride=2, padding=1)
    adapted, image = moved(layer), torch.randn(2, 6, 7, 7, 7)
    a, b = adapted.parametrizations.weight[0].A, adapted.parametrizations.weight[0].B
    narrow = F.conv3d(image, a.view(RANK, 6, 3, 3, 3), stride=2, padding=1)
    wanted = layer(image) + SCALE * F.conv3d(narrow, b.view(4, RANK, 1, 1, 1))
    torch.testing.assert_close(adapted(image), wanted, rtol=0.0, atol=1e-4)


def test_a_transposed_convolution_equals_two_in_a_row():
    layer = nn.ConvTranspose3d(6, 4, 2, stride=2)
    adapted, image = moved(layer), torch.randn(2, 6, 3, 3, 3)
    a, b = adapted.parametrizations.weight[0].A, adapted.parametrizations.weight[0].B
    narrow = torch.einsum("ncijk,cr->nrijk", image, b)
    wanted = layer(image) + SCALE * F.conv_transpose3d(narrow, a.view(RANK, 4, 2, 2, 2), stride=2)
    torch.testing.assert_close(adapted(image), wanted, rtol=0.0, atol=1e-4)


def test_mixed_precision_leaves_the_sum_in_full_precision():
    adapted = moved(nn.Conv3d(6, 4, 3))
    exact = adapted.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(adapted.weight, exact)


def test_layers_that_share_a_weight_share_its_update():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    both = nn.ModuleList([first, second])
    low_rank_updates(both, RANK, SCALE)
    assert len(list(both.parameters())) == 2 + 3  # the biases; the weight and its two matrices
    assert torch.equal(first.weight, second.weight)


def test_plain_tensors_come_back_as_they_are():
    tensors = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm3d(2)).state_dict()
    back = merged(tensors)
    assert list(back) == list(tensors)
    assert all(back[name] is each for name, each in tensors.items())


@pytest.mark.parametrize("part", ["original", "0.A", "0.B", "0.scale"])
def test_a_file_that_lacks_a_part_is_told(part):
    tensors = {f"up.{name}": each for name, each in moved(nn.Linear(6, 4)).state_dict().items()}
    del tensors[f"up.parametrizations.weight.{part}"]
    with pytest.raises(ValueError, match=r"up\..*missing"):
        merged(tensors)


@pytest.mark.parametrize(
    ("part", "shape"), [("0.A", (3, 6)), ("0.A", (2, 5)), ("0.B", (5, 2)), ("0.B", (4, 0)), ("0.scale", (1,))]
)
def test_parts_that_do_not_fit_are_told(part, shape):
    tensors = dict(moved(nn.Linear(6, 4)).state_dict())
    tensors[f"parametrizations.weight.{part}"] = torch.ones(shape)
    with pytest.raises(ValueError, match="do not fit each other"):
        merged(tensors)
