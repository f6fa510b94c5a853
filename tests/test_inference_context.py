"""Windows of networks that say nothing of the faces of an image."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks import ValidUNet


def small() -> ValidUNet:
    torch.manual_seed(3)
    network = ValidUNet(features=(2, 3, 4), out_channels=3)
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.2)
    return network.eval()


def in_one(network: Any, image: torch.Tensor) -> torch.Tensor:
    """One pass over the whole image, padded by its least value to a size that the network takes."""
    step, context = network.size_multiple, network.context
    wanted = [network.size_offset + step * (1 + side // step) for side in image.shape[2:]]
    assert all(whole >= side + 2 * context for whole, side in zip(wanted, image.shape[2:], strict=True))
    faces = [
        each
        for whole, side in zip(reversed(wanted), reversed(image.shape[2:]), strict=True)
        for each in (context, whole - side - context)
    ]
    i, j, k = image.shape[2:]
    return network(F.pad(image, faces, value=image.min().item()))[:, :, :i, :j, :k]


@pytest.mark.parametrize(("sides", "overlap", "batch_size"), [((19, 23, 11), 0.0, 3), ((30, 9, 14), 0.5, 1)])
@torch.no_grad()
def test_windows_laid_side_by_side_are_one_large_window(sides, overlap, batch_size):
    network, image = small(), torch.randn(2, 1, *sides)
    before = image.clone()
    window = SlidingWindow(patch=(52, 48, 56), overlap=overlap, batch_size=batch_size)
    torch.testing.assert_close(window(network, image), in_one(network, image), rtol=0, atol=1e-5)
    assert torch.equal(image, before)


@torch.no_grad()
def test_a_shift_by_less_than_the_coarsest_voxel_would_give_another_result():
    network, image = small(), torch.randn(1, 1, 64, 64, 64)
    whole, shifted = network(image), network(image[:, :, 2:-2, 2:-2, 2:-2])
    assert not torch.allclose(whole[:, :, 2:-2, 2:-2, 2:-2], shifted, atol=1e-3)
    torch.testing.assert_close(network(image[:, :, 4:-4])[:, :, :, 2:4], whole[:, :, 4:-4, 2:4], rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_window_is_a_patch_and_every_voxel_is_predicted_from_its_surroundings():
    class Middle(nn.Module):
        """Returns the middle of its input, as a network would whose field of view is three voxels to each side."""

        context, size_multiple, size_offset = 3, 4, 8

        def __init__(self) -> None:
            super().__init__()
            self.seen: set[tuple[int, ...]] = set()

        def forward(self, window: torch.Tensor) -> torch.Tensor:
            self.seen.add(tuple(window.shape[2:]))
            return window[:, :, 3:-3, 3:-3, 3:-3].clone()

    network, image = Middle(), torch.randn(1, 2, 21, 5, 13)
    torch.testing.assert_close(SlidingWindow(patch=(12, 16, 20), overlap=0.3)(network, image), image)
    assert network.seen == {(12, 16, 20)}


@torch.no_grad()
def test_mirrored_windows_are_averaged_in_place():
    network, image = small(), torch.randn(1, 1, 13, 17, 9)
    window = SlidingWindow(patch=(52, 52, 52), mirror=True)
    window.set_mirroring(("i", "k"))
    context = network.context
    total = 0
    padded = F.pad(image, (context, 56 - 9 - context, context, 60 - 17 - context, context, 56 - 13 - context))
    padded = torch.where(F.pad(torch.ones_like(image), _faces(image, padded, context)) > 0, padded, image.min())
    for dims in ((), (2,), (4,), (2, 4)):
        total = total + network(padded.flip(dims)).flip(dims)
    torch.testing.assert_close(window(network, image), total[:, :, :13, :17, :9] / 4, rtol=0, atol=1e-5)


def _faces(image: torch.Tensor, padded: torch.Tensor, context: int) -> list[int]:
    pairs = zip(reversed(padded.shape[2:]), reversed(image.shape[2:]), strict=True)
    return [each for whole, side in pairs for each in (context, whole - side - context)]


def test_a_patch_too_small_to_meet_its_neighbours_is_told_with_one_that_does():
    network = ValidUNet(features=(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"found patch \[92, 132, 130\]; try patch: \[100, 132, 132\]"):
        SlidingWindow(patch=(92, 132, 130))(network, torch.zeros(1, 1, 4, 4, 4))


@torch.no_grad()
def test_a_single_voxel_is_predicted_in_half_precision_and_on_the_host():
    image = torch.randn(1, 1, 1, 1, 1).bfloat16()
    logits = SlidingWindow(patch=(48, 48, 48), on_host=True)(small().bfloat16(), image)
    assert logits.shape == (1, 3, 1, 1, 1)
    assert logits.dtype == torch.float32
