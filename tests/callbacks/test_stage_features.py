import pytest
import torch
from torch import nn

from lightning_atlas.callbacks.stage_features import sampled, stage_features
from lightning_atlas.networks import GenesisUNet, Stage, UNet


def image(sides: int = 16, cases: int = 2) -> torch.Tensor:
    return torch.rand(cases, 1, sides, sides, sides, generator=torch.Generator().manual_seed(0))


def test_the_features_of_a_stage_are_what_it_returns_in_evaluation_mode():
    network = UNet(features=(4, 6, 8), dropout=0.5)
    found = stage_features(network, image(), 10_000)
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "encoder.0": (8192, 4),
        "encoder.1": (1024, 6),
        "encoder.2": (128, 8),
        "decoder.0": (1024, 6),
        "decoder.1": (8192, 4),
        "head": (8192, 2),
    }
    with torch.no_grad():
        first = network.eval().encoder[0](image()).movedim(1, -1).reshape(-1, 4)
    # All voxels were taken, in an order of their own.
    torch.testing.assert_close(found["encoder.0"].sort(0).values, first.sort(0).values)


def test_it_leaves_no_trace():
    network = GenesisUNet(init_filters=4).train()
    network.get_submodule("down_tr64").eval()
    modes = [module.training for module in network.modules()]
    before = {name: each.clone() for name, each in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    stage_features(network, image(), 50)
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_same_voxels_are_taken_of_every_output_of_one_shape():
    places = torch.arange(2 * 6 * 7 * 8.0).view(2, 1, 6, 7, 8).expand(-1, 3, -1, -1, -1)
    rows = sampled(places, 40)
    assert rows.shape == (40, 3)
    assert torch.equal(rows[:, 0], rows[:, 2])
    assert len(rows[:, 0].unique()) == 40
    assert torch.equal(sampled(places + 1, 40), rows + 1)


@pytest.mark.parametrize(("shape", "expected"), [((2, 9, 5), (18, 5)), ((6, 5), (6, 5)), ((2, 5, 3, 3), (18, 5))])
def test_tokens_have_their_features_last_and_grids_first(shape, expected):
    assert sampled(torch.rand(shape), 100).shape == expected


def test_of_a_list_of_modules_the_last_member_counts():
    class Listed(UNet):
        def stages(self) -> list[Stage]:
            return [Stage("encoder", "encoder", ("encoder",)), *super().stages()[3:]]

    network = Listed(features=(4, 6, 8))
    found = stage_features(network, image(), 10_000)
    assert torch.equal(found["encoder"], stage_features_of_unet(network)["encoder.2"])


def stage_features_of_unet(network: UNet) -> dict[str, torch.Tensor]:
    plain = UNet(features=(4, 6, 8))
    plain.load_state_dict(network.state_dict())
    return stage_features(plain, image(), 10_000)


def test_an_output_written_over_by_the_next_layer_is_kept_as_it_was():
    network = UNet(features=(4, 6))
    network.set_submodule("encoder.1", nn.Sequential(nn.ReLU(inplace=True), network.encoder[1]))
    network.set_submodule("encoder.0", nn.Sequential(network.encoder[0], nn.BatchNorm3d(4)))
    assert stage_features(network, image(), 500)["encoder.0"].min() < 0
