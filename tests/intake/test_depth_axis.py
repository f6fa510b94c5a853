"""Kernels that fit any way round by shape, told apart by their numbers."""

from dataclasses import replace

import pytest
import torch

from lightning_atlas.contract import Contract
from lightning_atlas.intake import zoo
from lightning_atlas.intake.depth_axis import check_idle, check_inflated, check_three_slices, inflated_along
from lightning_atlas.intake.loading import by_entry, load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import R3D, MedNeXt
from lightning_atlas.networks.depth import Conv3d

CUBIC = torch.randn(4, 3, 3, 3, 3)
MIDDLE = torch.zeros(4, 3, 3, 3, 3)
MIDDLE[..., 1] = CUBIC[..., 1]
REPEATED = CUBIC[..., :1].expand(-1, -1, -1, -1, 3).contiguous()


@pytest.mark.parametrize("kernel", [MIDDLE, REPEATED])
def test_the_axis_of_a_flat_kernel_is_where_it_is_repeated_or_alone(kernel):
    assert inflated_along(kernel) == "k"
    assert inflated_along(kernel.transpose(3, 4)) == "j"
    assert inflated_along(kernel.transpose(2, 4)) == "i"
    assert inflated_along(kernel.half().float().transpose(2, 4)) == "i"
    assert inflated_along(CUBIC) == ""
    assert inflated_along(torch.zeros(1, 1, 3, 3, 3)) == "ijk"


@pytest.mark.parametrize("kernel", [MIDDLE, REPEATED])
def test_only_kernels_that_all_lie_across_the_wrong_axis_are_refused(kernel):
    thin = {"thin.weight": torch.randn(4, 3, 3, 3, 1)}
    check_inflated({"a.weight": kernel, **thin}, "some.pt")
    check_inflated({"a.weight": kernel.transpose(2, 4), "b.weight": CUBIC}, "some.pt")
    zero = {"zero.weight": torch.zeros(1, 1, 3, 3, 3)}
    wrong = {"a.weight": kernel.transpose(2, 4), "b.weight": kernel.transpose(2, 4)}
    check_inflated(zero, "some.pt")
    with pytest.raises(ValueError, match=r"some\.pt holds 2D kernels inflated along i \(a\.weight and 1 more\)"):
        check_inflated({**zero, **wrong, **thin}, "some.pt")


def trained_on_three_slices() -> torch.Tensor:
    """Return a first kernel that learned to tell volumes of three slices apart, with weight decay."""
    torch.manual_seed(0)
    layer = Conv3d(1, 4, 7, padding=3, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=0.05)
    volumes, wanted = torch.randn(8, 1, 9, 9, 3), torch.randn(8, 4, 9, 9, 3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(volumes), wanted).backward()
        optimizer.step()
    return layer.weight.detach()


def test_a_first_kernel_of_three_slices_must_have_its_idle_taps_along_k():
    kernel = trained_on_three_slices()
    check_three_slices({"conv1.weight": kernel, "other.weight": CUBIC}, "vdt.pth")
    for turned, idle in (
        (kernel.transpose(2, 4), "i"),
        (kernel.transpose(3, 4), "j"),
        (torch.randn(4, 1, 7, 7, 7), ""),
    ):
        with pytest.raises(ValueError, match=rf"vdt\.pth: conv1\.weight is said .*\n.*slices lie along {idle}"):
            check_three_slices({"conv1.weight": turned}, "vdt.pth")
    check_three_slices({"conv1.weight": torch.randn(4, 1, 7, 7, 3)}, "vdt.pth")  # no idle tap among seven


def test_idle_taps_along_another_axis_are_refused_in_any_file():
    kernel = trained_on_three_slices()
    for sound in (kernel, CUBIC, torch.randn(4, 1, 7, 7, 7), kernel.transpose(2, 4).expand(4, 3, 7, 7, 7)):
        check_idle("conv1.weight", sound, "tensors.pt")
    for turned, idle, order in ((kernel.transpose(2, 4), "i", "kji"), (kernel.transpose(3, 4), "j", "jki")):
        with pytest.raises(
            ValueError, match=rf"tensors\.pt: .* conv1\.weight are idle along {idle}(.|\n)*axes: {order}"
        ):
            check_idle("conv1.weight", turned, "tensors.pt")


def test_a_file_whose_hash_is_unknown_is_looked_at_when_a_network_takes_it():
    network, kernel = R3D(features=4), trained_on_three_slices()
    tensors = network.state_dict() | {"conv1.weight": kernel}
    assert load_weights(network, SourceWeights(tensors, None, "tensors.pt", "0" * 64)).fresh == []
    turned = tensors | {"conv1.weight": kernel.transpose(2, 4).contiguous()}
    with pytest.raises(ValueError, match="NAME=FILE"):
        load_weights(network, SourceWeights(turned, None, "tensors.pt", "0" * 64))


def test_depthwise_kernels_behind_the_first_may_be_narrow_along_any_axis():
    network = MedNeXt(features=2, kernel_size=7, expansions=(1,) * 9, depths=(1,) * 9)
    tensors = {name: each.clone() for name, each in network.state_dict().items()}
    for each in tensors.values():
        if tuple(each.shape[1:]) == (1, 7, 7, 7):
            each[:, :, [0, -1]] *= 0.3
    assert load_weights(network, SourceWeights(tensors, None, "own.ckpt", "0" * 64)).fresh == []


def test_published_weights_of_three_slices_are_looked_at_when_they_are_read():
    kernel, name = trained_on_three_slices(), "suprem_unet"
    pictures = Contract(modality="photograph", orientation="LPS")
    entry = replace(zoo.find(name), contract=pictures, rules=zoo.KeyRules(axes="kji"))
    as_published = SourceWeights({"conv1.weight": kernel.permute(0, 1, 4, 3, 2)}, None, "vdt.pth", "0" * 64)
    assert torch.equal(by_entry(as_published, entry).tensors["conv1.weight"], kernel)
    with pytest.raises(ValueError, match="slices lie along i"):
        by_entry(replace(as_published, tensors={"conv1.weight": kernel}), entry)
    by_entry(replace(as_published, tensors={"conv1.weight": kernel}), replace(entry, url=None))  # shipped: made here
    scans = replace(entry, contract=Contract(modality="CT"))
    by_entry(replace(as_published, tensors={"conv1.weight": kernel}), scans)  # on the contract's word
