from functools import cache

import pytest
import torch
from jsonargparse import ArgumentParser
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_atlas.networks import Network, SwinUNETR
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.swin_unetr import MergingBefore15

OLD, NEW = "monai_0.9", "monai_1.5"


@cache
def image() -> torch.Tensor:
    return torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_default_has_the_tensors_of_the_published_network():
    network = SwinUNETR(out_channels=18)
    names = list(network.state_dict())
    assert len(names) == 159
    assert [name for name in names if name.startswith("out.")] == ["out.conv.conv.weight", "out.conv.conv.bias"]
    assert sum(parameter.numel() for parameter in network.parameters()) == 62_187_492
    assert network.output_axes() == {"out.conv.conv.weight": 0, "out.conv.conv.bias": 0}


@pytest.mark.parametrize("use_v2", [False, True])
def test_with_the_later_order_it_is_monais_network_with_monais_names(use_v2):
    theirs = MonaiSwinUNETR(in_channels=1, out_channels=3, feature_size=12, use_v2=use_v2).eval()
    ours = SwinUNETR(out_channels=3, feature_size=12, merging=NEW, use_v2=use_v2).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours(image()), theirs(image()))


def test_the_two_orders_take_the_same_tensors_and_predict_something_else():
    old, new = (SwinUNETR(feature_size=12, merging=merging).eval() for merging in (OLD, NEW))
    new.load_state_dict(old.state_dict(), strict=True)
    assert (old(image()) - new(image())).abs().max() > 0.01
    assert (old.conventions(), new.conventions()) == ({"merging": OLD}, {"merging": NEW})


@pytest.mark.parametrize("merging", [OLD, NEW])
def test_the_merging_reaches_every_level(merging):
    swin = SwinUNETR(feature_size=12, merging=merging).swinViT
    kinds = {type(getattr(swin, f"layers{level}")[0].downsample) for level in range(1, 5)}
    assert (kinds == {MergingBefore15}) == (merging == OLD)


def test_the_older_order_joins_two_neighbours_twice_and_two_never():
    # A voxel's value tells its place in its cell of eight; the eight slices of a cell then show the order.
    i, j, k = torch.meshgrid(*[torch.arange(4) % 2] * 3, indexing="ij")
    places = (100 * i + 10 * j + k)[None, ..., None].float()
    merging = MergingBefore15(dim=1)
    merging.set_submodule("norm", nn.Identity())
    merging.set_submodule("reduction", nn.Identity())
    joined = merging(places)
    assert joined.shape == (1, 2, 2, 2, 8)
    assert joined.unique(dim=1).flatten(0, 3).unique(dim=0).tolist() == [[0, 100, 10, 1, 101, 10, 1, 111]]


def test_the_older_order_is_a_strided_convolution_with_two_gaps_in_its_kernel():
    merging = MergingBefore15(dim=3)
    merging.set_submodule("norm", nn.Identity())
    maps = torch.rand(2, 4, 6, 2, 3)
    order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    kernel = torch.zeros(6, 3, 2, 2, 2)
    for position, (i, j, k) in enumerate(order):
        kernel[:, :, i, j, k] += merging.reduction.weight[:, 3 * position : 3 * position + 3]
    expected = torch.nn.functional.conv3d(maps.movedim(-1, 1), kernel, stride=2).movedim(1, -1)
    torch.testing.assert_close(merging(maps), expected)


@pytest.mark.parametrize("use_v2", [False, True])
def test_stages_hold_every_tensor_once(use_v2):
    network = SwinUNETR(feature_size=12, use_v2=use_v2)
    check_stages(network)
    assert [stage.part for stage in network.stages()] == ["encoder"] * 5 + ["decoder"] * 5 + ["head"]


def test_sharded_by_stages_it_learns_what_it_learns_whole(tmp_path):
    whole, network = SwinUNETR(feature_size=12), SwinUNETR(feature_size=12)
    network.load_state_dict(whole.state_dict())
    whole(image()).square().mean().backward()
    init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        for stage in network.stages():
            fully_shard([network.get_submodule(name) for name in stage.modules])
        fully_shard(network)
        network(image()).square().mean().backward()
        found = {
            name: each.grad.full_tensor() for name, each in network.named_parameters() if isinstance(each.grad, DTensor)
        }
    finally:
        destroy_process_group()
    torch.testing.assert_close(found, {name: each.grad for name, each in whole.named_parameters()})


def test_computing_blocks_again_changes_no_gradient():
    plain, again = SwinUNETR(feature_size=12), SwinUNETR(feature_size=12, use_checkpoint=True)
    again.load_state_dict(plain.state_dict())
    for network in (plain, again):
        network(image()).square().mean().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("sides", "told"),
    [((64, 48, 32), r"multiples of 32.* 64 x 64 x 32 voxels"), ((32, 32, 32), "set one side .* to 64 or more")],
)
def test_a_size_that_it_cannot_take_is_refused(sides, told):
    with pytest.raises(ValueError, match=told):
        SwinUNETR(feature_size=12)(torch.rand(1, 1, *sides))


def test_a_recipe_builds_it_and_an_unknown_order_is_refused():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Network)
    recipe = {"network": {"class_path": "SwinUNETR", "init_args": {"feature_size": 12, "merging": OLD}}}
    network = parser.instantiate(parser.parse_object(recipe)).network
    assert network.conventions() == {"merging": OLD}
    recipe["network"]["init_args"]["merging"] = "monai_1.4"
    with pytest.raises(Exception, match=r"monai_0\.9"):
        parser.parse_object(recipe)
