import pytest
import torch

from lightning_atlas.networks import UNet


def test_the_default_has_about_a_million_parameters():
    assert sum(parameter.numel() for parameter in UNet().parameters()) == pytest.approx(1.2e6, rel=0.1)


@pytest.mark.parametrize("sides", [(32, 32, 32), (64, 64, 16)])
def test_the_smallest_patches_train(sides):
    network = UNet().train()
    network(torch.rand(1, 1, *sides)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_every_level_after_the_first_halves_the_grid(levels):
    network = UNet(features=[4] * levels)
    assert network.size_multiple == 2 ** (levels - 1)
    assert len(network.stages()) == 2 * levels
    seen = []
    for level in network.encoder:
        level.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2:]))
    network(torch.rand(1, 1, 32, 32, 64))
    assert seen == [(32 >> level, 32 >> level, 64 >> level) for level in range(levels)]


def test_a_voxel_sees_its_neighbours_in_every_direction():
    network = UNet(features=(4, 4), out_channels=1).eval()
    image = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    network(image)[0, 0, 8, 8, 8].backward()
    assert image.grad is not None
    reach = [image.grad[0, 0].abs().amax(dim=axes).nonzero().flatten() for axes in [(1, 2), (0, 2), (0, 1)]]
    assert all(axis.min() < 8 < axis.max() for axis in reach)


def test_dropout_acts_in_training_only():
    image = torch.rand(1, 1, 8, 8, 8)
    network = UNet(features=(4, 4), dropout=0.5)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_the_scale_of_an_image_does_not_matter():
    network, image = UNet(features=(4, 6)).double(), torch.rand(1, 1, 16, 16, 16, dtype=torch.double)
    torch.testing.assert_close(network(1000 * image), network(100 * image), rtol=0, atol=1e-4)
    assert network(image).std() > 0.1


def test_cases_of_a_batch_do_not_touch_each_other():
    network, images = UNet(features=(4, 6)).train(), torch.rand(3, 1, 16, 16, 16)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))
