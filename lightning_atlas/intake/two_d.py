"""What a recipe asks of weights from pictures: 2D kernels in a 3D network, and kernels whose axes lie otherwise."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_atlas.contract import Contract
from lightning_atlas.intake.adapters import Adapter, Pair, kernel_for_channels
from lightning_atlas.intake.inflation import Taken
from lightning_atlas.intake.key_rules import common_wrapper, turned_axes
from lightning_atlas.networks.acs import in_plane
from lightning_atlas.networks.depth import Conv3d

How = Literal["centre", "mean", "slice", "p3d"]
Flat = Float[Tensor, "outputs inputs i j 1"]
Inflated = Float[Tensor, "outputs inputs i j k"]
DEEP_STEM = {"conv1.0.": "stem.0.conv.", "conv1.3.": "stem.1.conv.", "conv1.6.": "stem.2.conv."}
DEEP_STEM |= {"conv1.1.": "stem.0.bn.", "conv1.4.": "stem.1.bn.", "bn1.": "stem.2.bn."}
"""timm's names of a first layer of three kernels, and those of `R3D` with `stem: deep`."""
P3D_NAMES = {
    True: {"conv1": "conv1", "bn1": "norm_1", "conv2": "conv2", "bn2": "norm_2", "conv3": "conv4", "bn3": "norm_4"},
    False: {"conv1": "conv1", "bn1": "norm_1", "conv2": "conv3", "bn2": "norm_3"},
}
"""torchvision's names in a block, with a bottleneck and without, and those of `P3D`."""
BLOCK = re.compile(r"((?:.*\.)?layer(\d)\.(\d+))\.(\w+)\.(.+)")
ACROSS = re.compile(r"((?:.*\.)?layer\d\.\d+)\.conv(\d)\.weight")
EPS = 1e-5
"""What batch norm of torch adds to a variance."""
LIFT = 0.01
"""What a muted norm gives: a rectifier behind it passes no gradient at 0."""


@dataclass(frozen=True)
class Inflation(Adapter):
    """Take the kernels of a 2D ResNet, of torchvision or timm, by name into `R3D`, `ACSResNet` or `P3D`.

    A kernel's rows lie along j and its columns along i, as in a picture shown upright; so the weights expect scans in
    the orientation LPS. Along k, where slices lie:

    - `centre`: the kernel between zeros. On a volume of equal slices each slice is answered as the picture was.
    - `mean`: the kernel on every slice, divided by their number. The same holds where the network repeats the outer
      slices, `depth_policy: {padding: replicate}`; with zeros beyond them, thin volumes are answered wrongly, of which
      the report has a note.
    - `slice`: for networks whose kernels are one slice thick, as `ACSResNet` with `kernels: slice`.
    - `p3d`: for `P3D`, which needs it and `norm: batch`: kernels in the slices are the 2D ones; of those across them,
      the ones that follow pass on what they get, and norms mute the ones that stand beside. With bottlenecks that
      stride in their first kernel, as in Caffe, equal slices are answered as the picture was; torchvision strides in
      the second, and a block without a bottleneck has a rectifier more.

    2D convolutions of the network, such as those of the neck of `SliceDetector`, take theirs turned to i and j as well;
    fully connected layers of a 2D detector stay as they are, since `BoxHead` reads rows first. Of a file that holds 3D
    kernels, such as an export of what was inflated, the 2D ones lie along i and j already and stay.

    Statistics of norms are taken as they are. A network of one channel expects grey values v for which the three
    colours had v each; torchvision's own scaling differs a little between its colours, which one channel cannot have.

    Source: mean as in Carreira and Zisserman, 2017, https://arxiv.org/abs/1705.07750; centre as in Girdhar et al.,
    2018, https://arxiv.org/abs/1712.09184.

    Args:
        how: `centre`, `mean`, `slice` or `p3d`.
        colours: What becomes of the kernels that read the colours where the image has another number of channels:
            their `sum` answers an image whose channels are all the same as before; their `mean` gives a share of that,
            1 / the number of colours.
        leaves: Regular expression of names of 2D kernels in the file that the network need not take.
    """

    meets: ClassVar[tuple[str, ...]] = ("channels",)
    how: How = "centre"
    colours: Literal["sum", "mean"] = "sum"
    leaves: str = r"^(fc|head|classifier|aux_classifier)\."

    def stated(self, contract: Contract | None) -> Contract:
        """Return the contract with the orientation of pictures, unless it states one."""
        known = contract or Contract()
        return replace(known, orientation=known.orientation or "LPS")

    def named(self, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under the names of the 3D network.

        Raises:
            ValueError: The first layer or the shortcuts are of a kind that the network has not; or it is a `P3D`, and
                `how` is not `p3d` or its norms are not batch norms.
        """
        wrapper = common_wrapper(tensors)
        bare = {name[len(wrapper) :]: each for name, each in tensors.items()}
        if "conv1.0.weight" in bare:
            bare = _with_deep_stem(bare, targets)
        if _is_p3d(targets) and not _is_p3d(bare):
            self._check_p3d(targets)
            return _as_p3d(bare)
        grouped = any(re.search(r"(^|\.)gn\d?\.", name) for name in targets)
        if grouped and not any(name.endswith("running_mean") for name in bare):
            return {re.sub(r"(^|\.)bn(\d?)\.", r"\1gn\2.", name): each for name, each in bare.items()}
        return bare

    def made(self, targets: Mapping[str, Tensor], given: Collection[str]) -> dict[str, Taken]:
        """Return the kernels across slices that leave the features as they are, and their norms; for `p3d` alone."""
        if self.how != "p3d":
            return {}
        passing, found = _blocks(targets), {}
        for name, target in targets.items():
            match = ACROSS.fullmatch(name)
            if match is None or name in given or target.ndim != 5 or target.shape[4] == 1:
                continue
            found[name] = _across(target, passing[match[1]])
            norm = f"{match[1]}.norm_{match[2]}."
            tensors = {each: targets[each] for each in targets if each.startswith(norm)}
            found |= _norm_across(tensors, passing[match[1]])
        return found

    def take(self, pair: Pair) -> Taken | None:
        """Return a 2D kernel in the shape of a 3D one, or turned for a 2D layer; what is 3D already is left alone.

        Raises:
            ValueError: The kernel has no middle along k, or is to lie in single slices and the network's are thicker.
        """
        if pair.tensor.ndim != 4 or pair.target.ndim not in (4, 5):
            return None
        kernel = in_plane(pair.tensor.to(torch.promote_types(pair.tensor.dtype, torch.float32)))
        told = []
        if pair.tensor.shape[:2] == _as_image(pair, 0) and pair.target.shape[:2] == _as_image(pair, 1):
            kernel, words = self._grey(kernel, pair.target.shape[1])
            told.append(words)
        if pair.planar and max(kernel.shape[2:]) > 1:
            return Taken(kernel.squeeze(4), "; ".join([*told, "turned: its columns along i, its rows along j"]))
        if pair.target.ndim == 4:
            return Taken(kernel.squeeze(4).transpose(2, 3), "; ".join(told)) if told else None
        try:
            kernel, words = inflated(kernel, pair.target.shape[4], self.how)
        except ValueError as error:
            raise ValueError(f"{pair.name}: {error}") from error
        return Taken(kernel, "; ".join([*told, words]))

    def check(self, left_over: Mapping[str, Tensor]) -> None:
        """Refuse to leave 2D kernels or statistics of the file unused.

        Raises:
            ValueError: Some are left that `leaves` does not name.
        """
        left = {name: each for name, each in left_over.items() if not re.search(self.leaves, name)}
        flat = [name for name, each in left.items() if each.ndim == 4]
        if flat:
            raise ValueError(
                f"{len(flat)} 2D kernels of the file have no place in the network: {', '.join(flat[:3])}"
                f"{' and more' if len(flat) > 3 else ''}.\n"
                "Give the network their depth and channels in model.init_args.network (R3D or ACSResNet for ResNets by "
                "name, P3D with how: p3d); what is not needed, such as a head, is named by Inflation leaves: REGEX"
            )
        if statistics := [name for name in left if name.endswith("running_mean")]:
            raise ValueError(
                f"statistics of {len(statistics)} batch norms have no place in the network, such as {statistics[0]}, "
                "so that its features would be others: set norm: batch in model.init_args.network"
            )

    def _check_p3d(self, targets: Iterable[str]) -> None:
        if self.how != "p3d":
            raise ValueError(
                f"Inflation how: {self.how} leaves the kernels of P3D across slices as initialised: take how: p3d"
            )
        if not any(name.endswith("norm1.running_mean") for name in targets):
            raise ValueError(
                "Inflation how: p3d mutes kernels by the statistics of batch norms, which P3D with norm: group lacks: "
                "set norm: batch in model.init_args.network, or for 2D weights with group norms take R3D"
            )

    def _grey(self, kernel: Flat, channels: int) -> tuple[Float[Tensor, "outputs channels i j 1"], str]:
        colours = kernel.shape[1]
        repeats = channels > colours
        value, words = kernel_for_channels(kernel, channels, "repeat" if repeats else "mean")
        words = "sum" if channels == 1 else words
        if self.colours == "mean":
            value, words = value / colours, f"{words}, divided by {colours}"
        return value, f"{colours} -> {channels} input channels: {words}"


def inflated(kernel: Flat, slices: int, how: How) -> tuple[Inflated, str]:
    """Return a flat kernel that reaches over so many slices, and what was done in words; `Inflation` has the rules.

    Raises:
        ValueError: There is no middle slice, or the kernel may not reach over several.
    """
    if slices == 1:
        return kernel, "in its slice"
    if how == "mean":
        return kernel.expand(-1, -1, -1, -1, slices) / slices, f"on {slices} slices, divided by {slices}"
    if how == "centre" and slices % 2:
        value = kernel.new_zeros(*kernel.shape[:4], slices)
        value[..., slices // 2] = kernel[..., 0]
        return value, f"in the middle of {slices} slices, 0 on the others"
    if how == "centre":
        raise ValueError(f"a kernel over {slices} slices has no middle one: give Inflation how: mean")
    thin = "P3D" if how == "p3d" else "ACSResNet with kernels: slice"
    raise ValueError(
        f"how: {how} takes kernels one slice thick, and this one reaches over {slices}: take Inflation how: centre or "
        f"mean; or model.init_args.network: {thin}"
    )


def met_by_zeros(network: nn.Module, adapters: Iterable[Adapter], changed: Collection[str]) -> list[str]:
    """Return what to know where kernels on several slices meet zeros beyond the outer ones, which pictures had not.

    Args:
        network: That took them.
        adapters: By which it did.
        changed: Names of the tensors that it took in another shape.
    """
    if not any(isinstance(each, Inflation) and each.how == "mean" for each in adapters):
        return []
    met = {name: each for name, each in network.named_modules() if f"{name}.weight" in changed and _meets_zeros(each)}
    if not met:
        return []
    remedy = "take how: centre"
    if all(isinstance(each, Conv3d) for each in met.values()):
        remedy += ", or give the network depth_policy: {padding: replicate}"
    return [
        "kernels that lie on several slices (Inflation how: mean) meet zeros beyond the first and last slice in "
        f"{len(met)} layers, such as {next(iter(met))}: the outer slices, and thin volumes as a whole, are not "
        f"answered as pictures were; {remedy}"
    ]


def _meets_zeros(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv3d) or layer.weight.ndim != 5 or layer.weight.shape[4] == 1:
        return False
    padded = layer.padding == "same" or (not isinstance(layer.padding, str) and layer.padding[2] > 0)
    return padded and layer.padding_mode == "zeros" and getattr(layer, "depth_padding", "zeros") == "zeros"


@dataclass(frozen=True)
class KernelAxes(Adapter):
    """Take kernels whose spatial axes lie in another order than i, j, k, from a file of which nothing else is known.

    Args:
        axes: Order of the axes in the file, such as `kji` where slices come first and then rows and columns, or `jik`
            where rows and columns come first.
    """

    axes: Literal["kji", "kij", "jik", "jki", "ikj"] = "kji"

    def named(self, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors with their kernels turned."""
        return {name: turned_axes(each, self.axes) for name, each in tensors.items()}


def _as_image(pair: Pair, side: int) -> tuple[int, int] | None:
    """Return outputs and inputs of a kernel that reads the image, where inputs differ between file and network."""
    channels = pair.image_channels
    if channels is None or channels[0] == channels[1]:
        return None
    return (pair.tensor if side == 0 else pair.target).shape[0], channels[side]


def _with_deep_stem(bare: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if pooled := next((name for name in bare if name.endswith("downsample.2.weight")), None):
        raise ValueError(
            "the file's ResNet has shortcuts that average first, as timm's resnet18d, which no network here has "
            f"({pooled}); take weights of a ResNet without the d, such as timm's resnet18.a1_in1k"
        )
    if not any(name.endswith("stem.0.conv.weight") for name in targets):
        raise ValueError(
            "the file's ResNet has a first layer of three kernels (conv1.0.weight), which only R3D with stem: deep\n"
            "has: set that in model.init_args.network, or take weights with one first kernel, such as torchvision's"
        )
    starts = tuple(DEEP_STEM)
    return {name if not name.startswith(starts) else _replaced_start(name): each for name, each in bare.items()}


def _replaced_start(name: str) -> str:
    start = next(each for each in DEEP_STEM if name.startswith(each))
    return DEEP_STEM[start] + name.removeprefix(start)


def _is_p3d(names: Iterable[str]) -> bool:
    return any(name.endswith("conv1_custom.weight") for name in names)


def _as_p3d(bare: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bottlenecks = any(".conv3." in name for name in bare)
    found = {}
    for name, each in bare.items():
        if match := BLOCK.fullmatch(name):
            found[f"{match[1]}.{P3D_NAMES[bottlenecks].get(match[4], match[4])}.{match[5]}"] = each
        else:
            stem = re.sub(r"^(backbone\.)?conv1\.", r"\1conv1_custom.", name)
            found[re.sub(r"^(backbone\.)?bn1\.", r"\1norm1.", stem)] = each
    if bottlenecks:  # the norm behind the next kernel takes away what the muted one adds
        for block, passes in _blocks(found).items():
            mean = found.get(f"{block}.norm_4.running_mean")
            if mean is not None and not passes:
                found[f"{block}.norm_4.running_mean"] = mean + LIFT * found[f"{block}.conv4.weight"].sum((1, 2, 3))
    return found


def _blocks(names: Iterable[str]) -> dict[str, bool]:
    """Return each block, and whether its kernels act one after the other: A of A, B, C in turn."""
    found = {(int(match[2]), int(match[3])): match[1] for name in names if (match := BLOCK.fullmatch(name))}
    return {found[place]: number % 3 == 0 for number, place in enumerate(sorted(found))}


def _across(target: Tensor, passes: bool) -> Taken:
    """Return a kernel across slices that passes on what it gets, or the one that is there."""
    if not passes:
        return Taken(target.detach().clone(), "made: as initialised, and muted by its norm")
    return Taken(torch.nn.init.dirac_(torch.zeros_like(target)), "made: passes on what it gets")


def _norm_across(norm: Mapping[str, Tensor], passes: bool) -> dict[str, Taken]:
    """Return a norm that changes nothing in evaluation, or one that lets nothing through but can learn to."""
    values = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - EPS, "num_batches_tracked": 0}
    values |= {} if passes else {"weight": 0.0, "bias": LIFT}
    words = "made: changes nothing" if passes else f"made: lets nothing through but {LIFT}"
    return {name: Taken(torch.full_like(each, values[name.rpartition(".")[2]]), words) for name, each in norm.items()}
