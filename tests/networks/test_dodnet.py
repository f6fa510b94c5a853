import pytest
import torch
from torch.nn import functional as F

from lightning_atlas.networks import DoDNet
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.dodnet import ResidualBlock, StandardisedConv3d

TASKS = ("both", "both", "both", "both", "tumor", "tumor", "organ")


def tiny(outputs=3, tasks=("both", "tumor")) -> DoDNet:
    return DoDNet(1, outputs, tasks, init_filters=4)


def test_it_has_the_tensors_of_the_published_network():
    with torch.device("meta"):
        network = DoDNet(out_channels=11, tasks=TASKS)
    tensors = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    assert len(tensors) == 111
    assert sum(each.numel() for each in network.parameters()) == 17_329_528
    assert tensors["conv1.weight"] == (32, 1, 3, 3, 3)
    assert tensors["layer3.1.conv2.weight"] == (256, 256, 3, 3, 3)
    assert tensors["layer1.0.downsample.2.weight"] == (64, 32, 1, 1, 1)
    assert tensors["fusionConv.2.weight"] == (256, 256, 1, 1, 1)
    assert tensors["x8_resb.0.downsample.2.weight"] == (128, 256, 1, 1, 1)
    assert tensors["precls_conv.2.bias"] == (8,)
    assert tensors["GAP.0.weight"] == (256,)
    assert tensors["controller.weight"] == (162, 263, 1, 1, 1)
    shortcuts = {name.rpartition(".downsample")[0] for name in tensors if ".downsample" in name}
    assert shortcuts == {*(f"layer{level}.0" for level in range(1, 5)), *(f"x{scale}_resb.0" for scale in (8, 4, 2))}
    check_stages(network)


def of_task(network: DoDNet, image: torch.Tensor, case: int, task: int) -> torch.Tensor:
    """One case and one task: three ordinary convolutions, whose numbers the controller writes from a one-hot vector."""
    of = dict(network.named_parameters())
    coarse, fine = network.features(image)
    numbers = network.GAP(coarse)[case].flatten()
    told = torch.zeros(len(of["controller.weight"][0]) - len(numbers), dtype=image.dtype)
    told[task] = 1
    written = of["controller.weight"].flatten(1) @ torch.cat([numbers, told]) + of["controller.bias"]
    first, second, third, *biases = written.split([64, 64, 16, 8, 8, 2])
    maps = network.precls_conv(fine)[case : case + 1]
    maps = F.relu(F.conv3d(maps, first.view(8, 8, 1, 1, 1), biases[0]))
    maps = F.relu(F.conv3d(maps, second.view(8, 8, 1, 1, 1), biases[1]))
    return F.conv3d(maps, third.view(2, 8, 1, 1, 1), biases[2])[0]


@pytest.mark.parametrize("learning", [False, True])
def test_its_outputs_are_those_of_the_tasks_one_by_one(learning):
    network, image = tiny().double(), torch.rand(2, 1, 16, 16, 32, dtype=torch.double)
    with torch.set_grad_enabled(learning):
        logits = network(image)
        tasks = [[of_task(network, image, case, task) for task in (0, 1)] for case in (0, 1)]
        expected = torch.stack([torch.stack([first[0], first[1], second[1]]) for first, second in tasks])
    torch.testing.assert_close(logits, expected)
    assert logits.std(dim=1).mean() > 1e-4
    if learning:
        weight = torch.rand_like(logits)
        ours, theirs = (
            torch.autograd.grad((each * weight).sum(), list(network.parameters())) for each in (logits, expected)
        )
        torch.testing.assert_close(ours, theirs)


def test_a_kernel_counts_by_its_direction_alone():
    layer, image = StandardisedConv3d(2, 3, 3, bias=False).double(), torch.rand(1, 2, 5, 5, 5, dtype=torch.double)
    before = layer(image)
    layer.weight.data = 7 * layer.weight.data + 5
    torch.testing.assert_close(layer(image), before)
    flat = layer.weight.flatten(1)
    standard = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(layer.weight)
    torch.testing.assert_close(layer(image), F.conv3d(image, standard))


def test_a_block_whose_second_convolution_says_nothing_is_its_shortcut():
    block, maps = ResidualBlock(4, 4), torch.rand(1, 4, 4, 4, 4)
    block.gn2.weight.data.zero_()
    block.gn2.bias.data.zero_()
    torch.testing.assert_close(block(maps), maps)


def test_other_classes_are_tasks_of_their_own_and_the_body_stays():
    network = tiny()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    network.resize(3)
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    network.resize(5)
    after = network.state_dict()
    assert {name for name in after if after[name].shape != before[name].shape} == {"controller.weight"}
    assert after["controller.weight"].shape[1] == network.coarse_features + 5
    assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 5, 16, 16, 16)
    check_stages(network)


def test_the_stages_stand_in_the_order_of_the_forward_pass():
    network, called = tiny(), []
    listed = [name for stage in network.stages() for name in stage.modules]
    for name in listed:
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    network(torch.rand(1, 1, 16, 16, 16))
    assert called == listed
    assert [stage.part for stage in network.stages()] == ["encoder"] * 5 + ["decoder"] * 4 + ["head"]


def test_tasks_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="the tasks both, organ have 3 outputs, and out_channels is 2"):
        DoDNet(out_channels=2, tasks=("both", "organ"))
