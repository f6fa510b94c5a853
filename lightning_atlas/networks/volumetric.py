"""Any 2D network as a 3D one: kernels laid into planes or slices, and pools, norms and upsampling along k too."""

from collections.abc import Callable
from typing import Any, Literal, cast

from torch import Tensor, nn

from lightning_atlas.networks.acs import ACSConv3d, in_plane
from lightning_atlas.networks.base import Network
from lightning_atlas.networks.foreign import AdoptedNetwork, as_network

Kernels = Literal["acs", "soft", "mean", "slice"]
Pool = nn.MaxPool2d | nn.AvgPool2d
SAME: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: nn.BatchNorm3d,
    nn.InstanceNorm2d: nn.InstanceNorm3d,
    nn.Dropout2d: nn.Dropout3d,
}
"""Layers that differ from those of a volume in what they accept alone."""
FLAT = (nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold, nn.Unflatten)
"""Layers for pictures whose names do not end in 2d; on a volume they take other axes, or fail."""


def as_volumetric(
    network: nn.Module,
    encoder: list[str],
    decoder: list[str],
    head: list[str],
    kernels: Kernels = "acs",
    preserve_depth: bool = False,
    size_multiple: int | tuple[int, int, int] = 1,
) -> Network:
    """Make a 3D network of a 2D one, in place; names stay as they are, and so do weights that it has already.

    A picture's rows lie along j and its columns along i, so that its weights expect scans in the orientation LPS. A run
    does not know of weights that the network brings along: every stage counts as fresh, and its recipe has to turn the
    scans, first in `data.init_args.preprocess`, by `{class_path: torchio.ToOrientation, init_args: {orientation:
    LPS}}`. Those of a 2D ResNet can be given in `model.init_args.weights` instead, with the adapter `Inflation`.

    Only layers of torch are replaced. What is no layer but an operation in the `forward` of a module that holds some is
    not changed: `flatten` and addition work on volumes, a mean over named axes does not. In the place of a layer
    without a counterpart, put one that has one, or one that takes volumes, before.

    Args:
        network: The 2D network, with the weights of its pre-training or without.
        encoder: Names of its submodules in forward order, as in `as_network`.
        decoder: The same for the decoder; empty where there is none.
        head: The same for the head.
        kernels: What becomes of kernels: flat ones in three planes, `acs`, `soft` or `mean` as in `ACSConv3d`, which
            are odd squares padded by half their side; or in each `slice` alone, of any size. Kernels of one voxel stay
            what they are; those of transposed convolutions lie in each slice, which is repeated as their stride says.
        preserve_depth: Strides and pools leave the number of slices as it is.
        size_multiple: As in `as_network`; with `preserve_depth` one number is of i and j, and any number of slices is
            taken.

    Raises:
        ValueError: A layer has no counterpart in a volume.
    """
    if preserve_depth and isinstance(size_multiple, int):
        size_multiple = (size_multiple, size_multiple, 1)
    volumetric = made_volumetric(network, kernels, preserve_depth)
    adopted = as_network(volumetric, encoder, decoder, head, size_multiple)
    cast("AdoptedNetwork", adopted).adopted_conventions = {"kernels": kernels}
    return adopted


def made_volumetric(network: nn.Module, kernels: Kernels = "acs", preserve_depth: bool = False) -> nn.Module:
    """Return a 2D network with each layer replaced by its counterpart in a volume, in place.

    Args:
        network: Changed, unless it is a single layer.
        kernels: As in `as_volumetric`.
        preserve_depth: As in `as_volumetric`.

    Raises:
        ValueError: A layer has none; nothing was changed.
    """
    made: dict[int, nn.Module] = {}
    faults = []
    for name, layer in network.named_modules():
        try:
            if (new := _counterpart(layer, kernels, preserve_depth)) is not None:
                made[id(layer)] = new
        except ValueError as error:
            faults.append(f"{name or 'the network'}: {error}")
    if faults:
        more = f"\nand {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError("\n".join(faults[:3]) + more)
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if id(layer) in made and name:
            network.set_submodule(name, made[id(layer)].train(layer.training))
    return made.get(id(network), network)


def _counterpart(layer: nn.Module, kernels: Kernels, preserve_depth: bool) -> nn.Module | None:
    kind = type(layer)  # a subclass may do more, such as a rectifier behind its norm
    if kind in SAME:
        return _renamed(layer)
    makers: dict[type[nn.Module], Callable[[Any, bool], nn.Module]] = {
        nn.Conv2d: lambda each, preserve: _convolution(each, kernels, preserve),
        nn.ConvTranspose2d: _transposed,
        nn.MaxPool2d: _max_pool,
        nn.AvgPool2d: _average_pool,
        nn.AdaptiveAvgPool2d: lambda each, _: nn.AdaptiveAvgPool3d(_side(each.output_size, "output_size")),
        nn.AdaptiveMaxPool2d: lambda each, _: nn.AdaptiveMaxPool3d(_side(each.output_size, "output_size")),
        nn.Upsample: _upsampling,
        nn.UpsamplingBilinear2d: _upsampling,
        nn.UpsamplingNearest2d: _upsampling,
        nn.Softmax2d: lambda *_: nn.Softmax(dim=1),
    }
    if kind in makers:
        return makers[kind](layer, preserve_depth)
    # A module that holds layers is what these become, whatever it is called.
    flat = kind.__name__.lower().endswith("2d") and not any(layer.children())
    sides = isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) > 1
    if flat or sides or isinstance(layer, (*makers, *SAME, *FLAT)):
        raise ValueError(
            f"{kind.__module__}.{kind.__name__} has no counterpart in a volume here: put one of torch's own layers, or "
            "one that takes volumes, in its place before the conversion"
        )
    return None


def _renamed(layer: nn.Module) -> nn.Module:
    new = object.__new__(SAME[type(layer)])
    new.__dict__.update(layer.__dict__)
    return new


def _convolution(layer: nn.Conv2d, kernels: Kernels, preserve_depth: bool) -> nn.Module:
    rows, columns = layer.kernel_size
    if kernels == "slice" or rows == columns == 1:
        return _sliced(layer, preserve_depth)
    side, step = _side(layer.kernel_size, "kernel_size"), _side(layer.stride, "stride")
    apart = _side(layer.dilation, "dilation")
    stride = (step, step, 1 if preserve_depth else step)
    shape = (layer.in_channels, layer.out_channels, side, stride, apart, layer.groups, layer.bias is not None)
    new = ACSConv3d(*shape, kernels=cast("Literal['acs', 'soft', 'mean']", kernels)).to(layer.weight)
    if (padding := _padding(layer)) != (int(new.padding[0]),) * 2:
        raise ValueError(
            f"a kernel of {side} x {side} that is padded by {padding[0]} gives another shape in each plane: "
            f"set its padding to {new.padding[0]}, or take kernels: slice"
        )
    new.padding_mode, new.weight, new.bias = layer.padding_mode, layer.weight, layer.bias
    return new


def _sliced(layer: nn.Conv2d, preserve_depth: bool) -> nn.Conv3d:
    new = nn.Conv3d(
        layer.in_channels,
        layer.out_channels,
        _in_slice(layer.kernel_size, 1),
        _strides(layer.stride, preserve_depth),
        _in_slice(_padding(layer), 0),
        _in_slice(layer.dilation, 1),
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
    )
    new.weight, new.bias = nn.Parameter(in_plane(layer.weight.detach()).contiguous()), layer.bias
    return new


def _transposed(layer: nn.ConvTranspose2d, preserve_depth: bool) -> nn.ConvTranspose3d:
    stride = _strides(layer.stride, preserve_depth)
    new = nn.ConvTranspose3d(
        layer.in_channels,
        layer.out_channels,
        _in_slice(layer.kernel_size, stride[2]),
        stride,
        _in_slice(cast("tuple[int, int]", layer.padding), 0),
        _in_slice(layer.output_padding, 0),
        layer.groups,
        layer.bias is not None,
        _in_slice(layer.dilation, 1),
    )
    flat = in_plane(layer.weight.detach())
    new.weight, new.bias = nn.Parameter(flat.expand(-1, -1, -1, -1, stride[2]).contiguous()), layer.bias
    return new


def _max_pool(layer: nn.MaxPool2d, preserve_depth: bool) -> nn.Module:
    if layer.return_indices:
        raise ValueError("a pool that returns where its maxima were has no counterpart in a volume here")
    size, stride, padding = _pooling(layer, preserve_depth)
    apart = _pair(layer.dilation)
    if apart != (1, 1):
        raise ValueError(f"a pool whose values lie {apart} apart has no counterpart in a volume here: take dilation 1")
    return _guarded(nn.MaxPool3d(size, stride, padding, ceil_mode=layer.ceil_mode))


def _average_pool(layer: nn.AvgPool2d, preserve_depth: bool) -> nn.Module:
    if layer.divisor_override is not None:
        raise ValueError("a pool with a divisor of its own has no counterpart in a volume here")
    size, stride, padding = _pooling(layer, preserve_depth)
    return _guarded(nn.AvgPool3d(size, stride, padding, layer.ceil_mode, layer.count_include_pad))


def _guarded(pool: nn.MaxPool3d | nn.AvgPool3d) -> nn.Module:
    pool.register_forward_pre_hook(_check_slices)
    return pool


def _check_slices(pool: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse an image of which too few slices are left for a pool.

    Raises:
        ValueError: Says how many it takes.
    """
    assert isinstance(pool, nn.MaxPool3d | nn.AvgPool3d)
    size, padding = (cast("tuple[int, int, int]", each)[2] for each in (pool.kernel_size, pool.padding))
    slices = inputs[0].shape[-1]
    if not pool.ceil_mode and slices + 2 * padding < size:
        raise ValueError(
            f"a pool over {size} slices is given {slices}: give the network images of more slices, or set "
            "preserve_depth: true"
        )


def _pooling(layer: Pool, preserve_depth: bool) -> list[tuple[int, int, int]]:
    """Return size, stride and padding along i, j, k; where the slices stay, a maximum still looks at neighbours."""
    size, stride, padding = (_pair(each) for each in (layer.kernel_size, layer.stride, layer.padding))
    square = all(a == b for a, b in (size, stride, padding))
    along = (size[0], stride[0], padding[0]) if square else (1, 1, 0)
    if preserve_depth:  # zeros behind the last slice would lower a mean, and no maximum
        looks = square and size[0] % 2 and isinstance(layer, nn.MaxPool2d)
        along = (size[0], 1, size[0] // 2) if looks else (1, 1, 0)
    return [(each[1], each[0], last) for each, last in zip((size, stride, padding), along, strict=True)]


def _upsampling(layer: nn.Upsample, preserve_depth: bool) -> nn.Upsample:
    modes = {"bilinear": "trilinear", "nearest": "nearest", "nearest-exact": "nearest-exact"}
    if layer.size is not None or layer.mode not in modes:
        raise ValueError(
            f"upsampling to size {layer.size} by {layer.mode} has no counterpart in a volume here: give it a "
            f"scale_factor, and one of the modes {', '.join(modes)}"
        )
    rows, columns = cast("tuple[float, float]", _pair(layer.scale_factor))
    along = 1.0 if preserve_depth or rows != columns else rows
    return nn.Upsample(scale_factor=(columns, rows, along), mode=modes[layer.mode], align_corners=layer.align_corners)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer.padding, str):
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        found = tuple(apart * (side - 1) // 2 if layer.padding == "same" else 0 for apart, side in sizes)
        return cast("tuple[int, int]", found)
    return cast("tuple[int, int]", layer.padding)


def _in_slice(pair: tuple[int, ...], along: int) -> tuple[int, int, int]:
    rows, columns = pair
    return columns, rows, along


def _strides(pair: tuple[int, ...], preserve_depth: bool) -> tuple[int, int, int]:
    rows, columns = pair
    return _in_slice(pair, rows if rows == columns and not preserve_depth else 1)


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _side(value: Any, name: str) -> Any:
    rows, columns = _pair(value)
    if rows != columns:
        raise ValueError(
            f"{name} {rows} x {columns} is no square, so that there is no length along k: take kernels: slice"
        )
    return rows
