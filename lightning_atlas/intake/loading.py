"""From a file, a folder or a published name into a network: rename, match strictly, copy, and report all of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_atlas.intake import exported, nnunet, zoo
from lightning_atlas.intake.adapters import Adapter, Pair, adapted, donated
from lightning_atlas.intake.depth_axis import check_idle, check_inflated, check_three_slices
from lightning_atlas.intake.inflation import HeadByName, HeadRule, Taken
from lightning_atlas.intake.key_rules import Fit, best_fit
from lightning_atlas.intake.report import IntakeReport, Reshaped, Unmatched, some
from lightning_atlas.intake.two_d import met_by_zeros
from lightning_atlas.intake.weights import SUFFIXES, SourceWeights, read_file
from lightning_atlas.intake.zoo import ZooEntry
from lightning_atlas.networks.base import Network, stage_parameters


def read_weights(name_or_path: str) -> SourceWeights:
    """Read weights by the path of a file or folder, or the name of published ones; a path goes first.

    A file whose hash is a published one is read by the rules of its entry, wherever it lies and whatever it is called;
    `NAME=FILE` reads any file by the rules of an entry. A checkpoint of nnU-Net v2 is read by its plans. After a `#`
    stands which of several weights in one file to take, as in `run.ckpt#current_model_state`.

    Raises:
        FileNotFoundError: There is nothing of the kind, or published weights were not fetched yet.
        ValueError: The file cannot be read safely, is damaged or empty, or is not the published one.
    """
    published = zoo.entries()
    for place, nest in _places(name_or_path):
        path = Path(place).expanduser()
        if path.is_dir() and nest is None:
            return read_folder(path)
        if path.is_file():
            return _read_path(path, nest, published)
        if place in published:
            return _read_published(published[place], nest)
        name, _, file = place.partition("=")
        if name in published and Path(file).expanduser().is_file():
            return by_entry(read_file(Path(file).expanduser(), nest=nest), published[name])
    raise FileNotFoundError(_not_found(name_or_path, Path(name_or_path).expanduser(), list(published)))


def _places(given: str) -> list[tuple[str, str | None]]:
    """Return how a text can be understood: as a whole, or as a file and a nest in it."""
    place, mark, nest = given.rpartition("#")
    return [(given, None), *([(place, nest)] if mark and nest else [])]


def _read_path(path: Path, nest: str | None, published: Mapping[str, ZooEntry]) -> SourceWeights:
    if nest is None and nnunet.is_checkpoint(path):
        return nnunet.read_checkpoint(path)
    source = read_file(path, nest=nest)
    entry = next((each for each in published.values() if _is_of(source, path, each)), None)
    return by_entry(source, entry) if entry else source


def read_folder(folder: Path) -> SourceWeights:
    """Read an export of this library, or a folder of results of nnU-Net v2; the latter may lie in the one given.

    Raises:
        ValueError: It is neither, or holds several results.
    """
    if exported.is_export(folder):
        return exported.read_export(folder)
    results = [each for each in (folder, *sorted(folder.glob("*/"))) if nnunet.is_results(each)]
    if len(results) == 1:
        return nnunet.read_results(results[0])
    if results:
        raise ValueError(f"{folder} holds several folders of results; name one: {', '.join(map(str, results))}")
    raise ValueError(
        f"{folder} is neither an export (atlas.json, weights.safetensors) nor a folder of results of nnU-Net v2 "
        f"(plans.json, dataset.json, fold_0); files of weights in it: {_files_in(folder) or 'none'}"
    )


def by_entry(source: SourceWeights, entry: ZooEntry) -> SourceWeights:
    """Return tensors under the names that an entry's network has for them, with all that the entry says.

    Raises:
        ValueError: The rules give two tensors one name.
    """
    tensors, skipped = entry.rules.apply(source.tensors)
    if entry.url and entry.contract.modality == "photograph":  # what is shipped was trained by its axes here
        check_three_slices(tensors, source.origin)
    return SourceWeights(
        tensors,
        entry.contract,
        f"{source.origin} ({entry.name})",
        source.sha256,
        entry.network,
        _texts(entry),
        entry.fills,
        skipped,
        source.notes,
    )


def _texts(entry: ZooEntry) -> dict[str, Any]:
    texts = ("name", "licence", "origin", "card", "citation", "sources", "doubts", "url", "head")
    used = {"task": entry.task} if entry.task else {}
    return {key: getattr(entry, key) for key in texts} | used


def _read_published(entry: ZooEntry, nest: str | None) -> SourceWeights:
    if entry.path.is_dir():
        source = read_folder(entry.path)
        stated = source.contract or entry.contract
        unknown = [each.name for each in fields(stated) if getattr(stated, each.name) is None]
        contract = replace(stated, **{key: getattr(entry.contract, key) for key in unknown})
        card = source.card | _texts(entry)
        return replace(source, contract=contract, card=card, origin=f"{source.origin} ({entry.name})")
    if not entry.path.is_file():
        if entry.by_browser:
            raise FileNotFoundError(
                f"{entry.name} is published, and {entry.path} is not here.\n"
                f"Its page hands it to browsers alone: save what {entry.url} gives as that file,\n"
                f"or give {entry.name}=FILE in the place of the name"
            )
        size = f" ({entry.size_bytes / 1e6:,.0f} MB)" if entry.size_bytes else ""
        raise FileNotFoundError(
            f"{entry.name} is published, and {entry.path} is not here.\n"
            f"Fetch it{size}: lightning-atlas weights fetch {entry.name}\n"
            f"or give the path of a copy of {entry.path.name} in the place of the name"
        )
    return by_entry(read_file(entry.path, entry.hash, nest), entry)


def _is_of(source: SourceWeights, path: Path, entry: ZooEntry) -> bool:
    if entry.hash:
        return source.sha256.startswith(entry.hash)
    size = entry.size_bytes
    return path.name == entry.path.name and (size is None or size == path.stat().st_size)


def load_weights(
    network: Network,
    source: SourceWeights,
    classes: Sequence[str] = (),
    required_share: float = 0.9,
    adapters: Sequence[Adapter] = (),
    head: HeadRule = "by_name",
    channels: Sequence[str] = (),
) -> IntakeReport:
    """Copy into a network what fits by name and shape; outputs of the head go by the names of their classes.

    Args:
        network: Changed in place, and only after everything was matched.
        source: As read; known prefixes are dropped from the front of all its names.
        classes: Of the network's outputs in order, without background; with them and those of the source's contract,
            the head takes the outputs whose class it shares. Without either it is taken whole or not at all.
        required_share: The least share of the parameters that must be loaded, of those of the encoder that the source
            is meant to fill.
        adapters: Rules for tensors that do not fit as they are, one after the other.
        head: `fresh` leaves the head's last layer as initialised, the outputs of shared classes too.
        channels: Names of the image's channels in order; with them and those of the source's contract,
            `InputChannels` goes by name.

    Raises:
        ValueError: Less than that was found; the network is as before.
    """
    if not 0.0 <= required_share <= 1.0:
        raise ValueError(f"required_share is {required_share}; it is a share of the whole, from 0 to 1")
    targets = {name: each for name, each in network.state_dict().items() if isinstance(each, Tensor)}
    shapes = {name: each.shape for name, each in targets.items()}
    for adapter in adapters:
        source = replace(source, tensors=adapter.named(source.tensors, targets))
    fit = best_fit({name: each.shape for name, each in source.tensors.items()}, shapes)
    report = IntakeReport(source.origin, fit.dropped, fit.added, skipped=dict(source.skipped))
    outputs = HeadByName(network, _classes(source), classes, head == "fresh")
    values = _match(_Changing(network, source, fit, outputs, adapters, channels), source, targets, report)
    for adapter in adapters:
        adapter.check({each.name: source.tensors[each.name] for each in report.left_over})
    check_inflated(values, report.origin)
    if (first := _first_kernel(network)) in values:
        check_idle(first, values[first], report.origin)
    parameters = _encoder_parameters(network)
    report.encoder_share = _share(parameters, values)
    claimed = tuple(fit.added + each.removeprefix(fit.dropped) for each in source.fills)
    meant = {name: count for name, count in parameters.items() if not claimed or name.startswith(claimed)}
    if _share(meant, values) < required_share or not (report.loaded or report.renamed):
        raise ValueError(_too_little(network, source, report, _share(meant, values), required_share))
    report.notes += [*source.notes, *_other_conventions(network, source)]
    report.notes += met_by_zeros(network, adapters, {each.name for each in report.reshaped})
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return report


def as_adapted(source: SourceWeights, adapters: Sequence[Adapter]) -> SourceWeights:
    """Return weights with all that adapters know of what they expect of an image."""
    for adapter in adapters:
        source = replace(source, contract=adapter.stated(source.contract))
    return source


def second_names(network: nn.Module) -> set[str]:
    """Return every further name of a tensor that a network has under several, as where a decoder holds its encoder."""
    first = {*dict(network.named_parameters()), *dict(network.named_buffers())}
    parameters, buffers = (each(remove_duplicate=False) for each in (network.named_parameters, network.named_buffers))
    return {*dict(parameters), *dict(buffers)} - first


class _Changing:
    """Finds for each tensor of a network the one of a file, and brings it into the network's shape."""

    def __init__(
        self,
        network: Network,
        source: SourceWeights,
        fit: Fit,
        head: HeadByName,
        adapters: Sequence[Adapter],
        channels: Sequence[str],
    ) -> None:
        targets = {name: each for name, each in network.state_dict().items() if isinstance(each, Tensor)}
        self.given = {name: key for name in targets if (key := fit.key(name)) in source.tensors and key is not None}
        self.head, self.adapters = head, adapters
        theirs = {
            fit.added + key[len(fit.dropped) :]: each
            for key, each in source.tensors.items()
            if key.startswith(fit.dropped)
        }
        self.second = second_names(network) - self.given.keys()
        lacking = {name: each for name, each in targets.items() if name not in self.second}
        self.donors = donated(adapters, lacking, theirs)
        self.given |= {name: fit.dropped + other[len(fit.added) :] for name, other in self.donors.items()}
        self.made = {name: each for one in adapters for name, each in one.made(lacking, self.given).items()}
        self.image_channels = _image_channels(network, {name: source.tensors[key] for name, key in self.given.items()})
        names = (source.contract.channels if source.contract else (), tuple(channels))
        self.channel_names = dict.fromkeys(_in_first_stage(network), names)
        of_volumes = any(each.ndim == 5 for each in source.tensors.values())  # its 2D kernels lie along i and j
        self.planar = set() if of_volumes else _planar_kernels(network)

    def take(self, name: str, tensor: Tensor, target: Tensor) -> Taken | None:
        """Return the tensor changed, or `None` where nothing changes it."""
        told = [f"from {self.donors[name]}, the nearest by name"] if name in self.donors else []
        names = self.channel_names.get(name, ((), ()))
        planar = name in self.planar
        if tensor.shape != target.shape or names[0] != names[1] or planar:
            tensor, changed = adapted(self.adapters, Pair(name, tensor, target, self.image_channels, names, planar))
            told += changed
        if taken := self.head.take(name, tensor, target):
            return taken._replace(how="; ".join([*told, taken.how]))
        fits = tensor.shape == target.shape and not self.head.refuses(name)
        return Taken(tensor, "; ".join(told)) if told and fits else None


def _match(
    changing: _Changing, source: SourceWeights, targets: Mapping[str, Tensor], report: IntakeReport
) -> dict[str, Tensor]:
    """Return the value of each tensor that the source fills, and sort all tensors of both sides into the report."""
    values, used, head = {}, set(), changing.head
    for name, target in targets.items():
        if name in changing.second:
            continue  # it is filled under its first name, by which a file may have it alone
        key = changing.given.get(name)
        if key is None and name in changing.made:
            values[name] = changing.made[name].value
            report.reshaped.append(Reshaped("", name, changing.made[name].how, True))
            continue
        if key is None:
            report.fresh.append(Unmatched(name, tuple(target.shape)))
            continue
        tensor = source.tensors[key]
        used.add(key)
        taken = changing.take(name, tensor, target)
        if taken is not None:
            values[name] = taken.value
            report.reshaped.append(Reshaped(key, name, taken.how, not taken.fresh))
            report.fresh_outputs = list(taken.fresh) or report.fresh_outputs
        elif tensor.shape != target.shape or head.refuses(name):
            report.fresh.append(Unmatched(name, tuple(target.shape), tuple(tensor.shape)))
            report.left_over.append(Unmatched(key, tuple(tensor.shape), tuple(target.shape)))
        else:
            values[name] = tensor
            report.renamed.append((key, name)) if key != name else report.loaded.append(name)
    report.left_over += [Unmatched(key, tuple(each.shape)) for key, each in source.tensors.items() if key not in used]
    report.fresh_outputs = report.fresh_outputs or head.all_fresh(values, targets)
    return values


def _image_channels(network: Network, given: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the channels that the first kernel of the first stage reads, in the file and here."""
    name = _first_kernel(network)
    if name not in given or given[name].ndim < 4:
        return None
    return given[name].shape[1], network.get_parameter(name).shape[1]


def _first_kernel(network: Network) -> str:
    """Return the name of the first kernel of the first stage; empty where it has none."""
    parameters = stage_parameters(network, network.stages()[0])
    return next((name for name, each in parameters.items() if each.ndim >= 4), "")  # flat kernels have four axes


def _planar_kernels(network: Network) -> set[str]:
    """Return every name of the kernels of 2D convolutions, which lie along i and j as the features do."""
    flat = nn.Conv2d | nn.ConvTranspose2d
    modules = network.named_modules(remove_duplicate=False)
    return {f"{name}.weight" for name, each in modules if isinstance(each, flat)}


def _in_first_stage(network: Network) -> set[str]:
    """Return every name of the parameters in the stage that reads the image."""
    own = {id(each) for each in stage_parameters(network, network.stages()[0]).values()}
    return {name for name, each in network.named_parameters(remove_duplicate=False) if id(each) in own}


def _classes(source: SourceWeights) -> tuple[str, ...]:
    return source.contract.classes if source.contract else ()


def _encoder_parameters(network: Network) -> dict[str, int]:
    stages = [stage for stage in network.stages() if stage.part == "encoder"]
    return {name: each.numel() for stage in stages for name, each in stage_parameters(network, stage).items()}


def _share(parameters: Mapping[str, int], values: Mapping[str, Tensor]) -> float:
    return sum(count for name, count in parameters.items() if name in values) / max(1, sum(parameters.values()))


def _other_conventions(network: Network, source: SourceWeights) -> list[str]:
    told = zoo.settings(source.network or {})
    return [
        f"these weights are used with {key}: {str(told[key]).lower()}, and the network has {ours}: what it computes "
        "from them is not what was published; set it in model.init_args.network"
        for key, ours in network.conventions().items()
        if key in told and str(told[key]).lower() != ours
    ]


def _too_little(network: Network, source: SourceWeights, report: IntakeReport, share: float, required: float) -> str:
    what = f"{', '.join(source.fills)} in the encoder" if source.fills else "the encoder"
    lines = [
        f"{report.origin} fills {share:.1%} of {what} of {type(network).__name__}, and {required:.1%} are required: "
        "probably weights of another network, or of one with other arguments "
        f"(fresh {some(report.fresh, 1)}; left over {some(report.left_over, 1)})"
    ]
    if any(each.other and len(each.shape) == 4 and len(each.other) == 5 for each in report.left_over):
        lines.append("Its kernels are 2D: say how they become 3D, model.init_args.adapters: [{class_path: Inflation}]")
        return "\n".join(lines)
    near = zoo.nearest(source.tensors)
    if not near and (wide := next(filter(None, map(_other_width, report.fresh)), None)):
        return "\n".join([*lines, wide])
    if not near:
        return "\n".join([*lines, "Set model.init_args.network to theirs, or lower model.init_args.required_share"])
    best = zoo.entries()[near[0].name]
    spec = json.dumps(best.network).replace('"', "").replace(zoo.NETWORKS, "")
    lines.append(f"It looks like {', '.join(map(str, near))}: set model.init_args.network to {spec},")
    how = f"and, if names differ, weights to {best.name}=FILE; " if best.rules.rename else ""
    return "\n".join([*lines, how + "or lower model.init_args.required_share"])


def _other_width(fresh: Unmatched) -> str | None:
    """Return what to set where two kernels are alike but for their outputs, as the first ones of a narrow network."""
    ours, theirs = fresh.shape, fresh.other
    if theirs is None or len(ours) != 5 or ours[1:] != theirs[1:]:
        return None
    return (
        f"{fresh.name} has {theirs[0]} outputs there and {ours[0]} here: give the network as many channels, such as "
        f"--model.network.backbone.features {theirs[0]} where it is a ResUNet over R3D"
    )


def _not_found(name: str, path: Path, published: list[str]) -> str:
    known = get_close_matches(name, published, n=3, cutoff=0.4) or published[:3]
    folder = path.parent
    return (
        f"{name} is neither a file, a folder nor the name of published weights. "
        f"Nearest published: {', '.join(known) or 'none'}; "
        f"nearest files in {folder.absolute()}: {_files_in(folder, path.name) or 'none'}"
    )


def _files_in(folder: Path, like: str = "") -> str:
    files = [each.name for each in sorted(folder.iterdir()) if each.suffix in SUFFIXES] if folder.is_dir() else []
    return ", ".join(str(folder / each) for each in get_close_matches(like, files, n=3, cutoff=0.4) or files[:3])
