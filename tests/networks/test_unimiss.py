import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_atlas.networks import UniMiSS
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.unimiss import Attention, positions_on


def tiny() -> UniMiSS:
    return UniMiSS(out_channels=3, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1), features=(8, 16, 16, 32))


def block(features, reduction, bias):
    attention = features * features * 3 + bias * features * 3 + features * features + features
    attention += (features**2 * reduction**3 + 3 * features) * (reduction > 1)
    return attention + 4 * features + 8 * features**2 + 5 * features


@pytest.mark.parametrize(
    ("depths", "decoder_depths"), [((2, 3, 4, 3), (3, 4, 3)), ((1, 1, 1, 1), (1, 1, 1))], ids=["small", "tiny"]
)
def test_it_has_the_tensors_of_the_published_network(depths, decoder_depths):
    with torch.device("meta"):
        network = UniMiSS(depths=depths, decoder_depths=decoder_depths)
    tensors = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    assert tensors["transformer.patch_embed0.conv.weight"] == (32, 1, 7, 7, 7)
    assert tensors["transformer.patch_embed4.proj.norm.bias"] == (512,)
    assert [tensors[f"transformer.pos_embed{level}"] for level in range(1, 5)] == [
        *((1, 8 * 24 * 24 + 1, 48), (1, 4 * 12 * 12 + 1, 128), (1, 2 * 6 * 6 + 1, 256), (1, 3 * 3 + 1, 512))
    ]
    assert [tensors[f"DecPosEmbed{level}"] for level in range(3)] == [
        tensors[f"transformer.pos_embed{level}"] for level in (3, 2, 1)
    ]
    assert tensors["transformer.block1.0.attn.sr.weight"] == (48, 48, 6, 6, 6)
    assert tensors["Decblock2.0.attn.sr.weight"] == (48, 48, 6, 6, 6)
    assert "transformer.block4.0.attn.sr.weight" not in tensors
    assert "transformer.block4.0.attn.q.bias" in tensors
    assert "Decblock0.0.attn.q.bias" not in tensors
    down = zip((48, 128, 256, 512), depths, (6, 4, 2, 1), strict=True)
    up = zip((256, 128, 48), decoder_depths, (2, 4, 6), strict=True)
    expected = sum(depth * block(width, reduction, True) for width, depth, reduction in down)
    expected += sum(depth * block(width, reduction, False) for width, depth, reduction in up)
    parts = ("transformer.block", "Decblock")
    assert sum(each.numel() for name, each in network.named_parameters() if name.startswith(parts)) == expected
    check_stages(network)


@pytest.mark.parametrize("sides", [(64, 32, 16), (32, 64, 32)])
def test_the_output_lies_on_the_grid_of_the_image(sides):
    network = tiny()
    logits = network(torch.rand(1, 1, *sides))
    assert logits.shape == (1, 3, *sides)
    assert network.encoded(torch.rand(1, 1, *sides)).shape == (1, 32, sides[0] // 32, sides[1] // 32, sides[2] // 16)
    logits.square().mean().backward()
    without = {name for name, each in network.named_parameters() if each.grad is None}
    assert not without


def test_attention_is_that_of_torch():
    ours = Attention(8, 2, 1, bias=True).double()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight]).data
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias]).data
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    tokens = torch.randn(2, 12, 8, dtype=torch.double)
    torch.testing.assert_close(ours(tokens, (3, 2, 2)), theirs(tokens, tokens, tokens)[0])


def test_what_is_looked_at_is_coarsened_by_blocks_of_places():
    attention, maps = Attention(4, 1, 2, bias=False), torch.randn(1, 4, 4, 2, 2)
    assert attention.sr is not None
    assert attention.sr.bias is not None
    assert attention.norm is not None
    nn.init.zeros_(attention.sr.weight)
    attention.sr.weight.data[range(4), range(4)] = 1 / 8  # the mean of each block
    attention.sr.bias.data.zero_()
    tokens = maps.flatten(2).transpose(1, 2)
    coarse = attention.norm(F.avg_pool3d(maps, 2).flatten(2).transpose(1, 2))
    key, value = attention.kv(coarse).chunk(2, dim=2)
    weights = (attention.q(tokens) @ key.transpose(1, 2) / 2).softmax(-1)
    torch.testing.assert_close(attention(tokens, (4, 2, 2)), attention.proj(weights @ value))


def test_positions_lie_as_published_and_the_first_row_is_left_out():
    grid = torch.arange(3 * 3, dtype=torch.float32).view(1, 3, 3)  # k i j
    positions = torch.cat([torch.tensor([99.0]), grid.flatten()]).view(1, 10, 1)
    maps = positions_on(nn.Parameter(positions), (3, 3, 1))
    assert torch.equal(maps[0, 0, :, :, 0], grid[0])
    published = torch.randn(4, 12, 12, 5)  # k i j features
    rows = torch.cat([torch.zeros(1, 5), published.view(-1, 5)])[None]
    assert torch.equal(positions_on(nn.Parameter(rows), (12, 12, 4))[0], published.permute(3, 1, 2, 0))
    finer = positions_on(nn.Parameter(rows), (24, 12, 4))
    expected = F.interpolate(published.permute(3, 1, 2, 0)[None], size=(24, 12, 4), mode="trilinear")
    torch.testing.assert_close(finer, expected)


def test_the_stages_stand_in_the_order_of_the_forward_pass():
    network, called = tiny(), []
    stages = {stage.name: stage.modules for stage in network.stages()}
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    network(torch.rand(1, 1, 64, 32, 16))
    seen = [next(stage for stage, names in stages.items() if name.startswith(names)) for name in called]
    assert list(dict.fromkeys(seen)) == list(stages)
    assert seen == sorted(seen, key=list(stages).index)


def test_levels_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="has 4 levels down and 3 up; found 4 features, 3 depths and 3"):
        UniMiSS(depths=(1, 1, 1))
