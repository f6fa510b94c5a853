"""A results folder of nnU-Net v2, or one of its checkpoints, as source weights: tensors, network, contract and classes.

nnU-Net's kernels lie along k, j, i (or a permutation that its plans name); here they are turned to i, j, k. Nothing of
a checkpoint is executed: beside tensors and plain values only NumPy's scalars pass.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from lightning_atlas.intake.key_rules import common_wrapper
from lightning_atlas.intake.nnunet_plans import Plans, nnunet_spec, results_contract, stu_net_spec
from lightning_atlas.intake.weights import HARMLESS, SourceWeights, read_file
from lightning_atlas.intake.zoo import build_network

PLANS, DATASET = "plans.json", "dataset.json"
FINAL = "checkpoint_final.pth"
STU_NET = "conv_blocks_context."


def is_results(folder: Path) -> bool:
    """Tell whether a folder holds the results of one configuration: plans, dataset and folds."""
    return all((folder / name).is_file() for name in (PLANS, DATASET)) and any(folder.glob("fold_*/*.pth"))


def is_checkpoint(path: Path) -> bool:
    """Tell whether nnU-Net's trainer wrote a file, without reading its tensors."""
    if path.suffix != ".pth" or not is_zipfile(path):
        return False
    try:
        content = _load(path)
    except Exception:  # a damaged pickle raises whatever its bytes lead to; `read_file` says what is wrong
        return False
    return isinstance(content, Mapping) and {"network_weights", "init_args", "trainer_name"} <= content.keys()


def read_results(folder: Path, fold: str | None = None, checkpoint: str = FINAL) -> SourceWeights:
    """Read the weights of one fold, with the network and the contract that its plans describe.

    Args:
        folder: Has `plans.json`, `dataset.json` and the folds.
        fold: `0` to `4`, or `all`; `None` takes `all` where it is, else the first.
        checkpoint: Name of the file in the fold's folder.

    Raises:
        ValueError: No such fold or checkpoint, or one that `read_checkpoint` refuses.
    """
    found = sorted(folder.glob(f"fold_*/{checkpoint}"), key=lambda path: (path.parent.name != "fold_all", path))
    chosen = [path for path in found if fold is None or path.parent.name == f"fold_{fold}"]
    if not chosen:
        there = ", ".join(str(path.relative_to(folder)) for path in sorted(folder.glob("fold_*/*.pth")))
        raise ValueError(
            f"{folder} has no {f'fold_{fold}' if fold else 'fold_*'}/{checkpoint}; it has {there or 'none'}: name one "
            "of them with its whole path"
        )
    source = read_checkpoint(chosen[0])
    if len(found) > 1:
        others = ", ".join(path.parent.name for path in found)
        note = f"one of {len(found)} folds ({others}), of which nnU-Net takes the mean; another: {found[-1]}"
        source.card["doubts"] = (*source.card["doubts"], note)
    return source


def read_checkpoint(path: Path) -> SourceWeights:
    """Read a checkpoint of nnU-Net v2; plans and dataset are those beside its fold, else those in the file itself.

    Raises:
        ValueError: The file is damaged, its plans are of no network of this library, or its tensors are of another one.
    """
    source = read_file(path)
    try:
        plans = _plans(path)
        wrapper = common_wrapper(source.tensors)
        tensors = {name[len(wrapper) :]: tensor for name, tensor in source.tensors.items()}
        network = _spec(plans, tensors)
        contract, doubts = results_contract(plans)
        tensors = turned(tensors, plans.order())
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its plans or dataset are not as nnU-Net v2 writes them: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_names(path, plans, network, tensors)
    card = {
        "name": str(plans.plans.get("dataset_name", path.parent.parent.name)),
        "origin": f"nnU-Net v2, {plans.trainer}, {plans.plans.get('plans_name')}, {plans.name}, {path.parent.name}",
        "patch": [plans.configuration()["patch_size"][axis] for axis in plans.order()],
        "doubts": tuple(doubts),
    }
    return replace(source, tensors=tensors, contract=contract, network=network, card=card)


def turned(tensors: Mapping[str, Tensor], order: Sequence[int] = (2, 1, 0)) -> dict[str, Tensor]:
    """Return tensors with the spatial axes of their kernels in another order; what shared memory goes on sharing it.

    Args:
        tensors: By name; one of five dimensions is a kernel.
        order: Which of a kernel's axes becomes i, j and k.
    """
    dims = (0, 1, *(2 + axis for axis in order))
    done: dict[tuple[Any, ...], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if memory not in done:
            done[memory] = tensor.permute(dims).contiguous() if tensor.ndim == 5 else tensor
        found[name] = done[memory]
    return found


def _plans(path: Path) -> Plans:
    content, home = _load(path), path.parent.parent
    inner = content["init_args"]
    beside = [_read_json(home / name) if (home / name).is_file() else None for name in (PLANS, DATASET)]
    return Plans(
        plans=beside[0] or inner["plans"],
        dataset=beside[1] or inner["dataset_json"],
        name=inner["configuration"],
        trainer=content["trainer_name"],
        mirrored=tuple(content.get("inference_allowed_mirroring_axes") or ()),
    )


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged ({error})") from error


def _spec(plans: Plans, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if any(name.startswith(STU_NET) for name in tensors):
        blocks = sorted({tuple(map(int, name.split(".")[1:3])) for name in tensors if name.startswith(STU_NET)})
        levels = [level for level, block in blocks if block == 0]
        features = [tensors[f"{STU_NET}{level}.0.conv1.weight"].shape[0] for level in levels]
        return stu_net_spec(plans, features, [sum(each == level for each, _ in blocks) for level in levels])
    return nnunet_spec(plans, batch_norm=any(name.endswith("norm.running_var") for name in tensors))


def _check_names(path: Path, plans: Plans, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: each.shape for name, each in build_network(spec).state_dict().items()}
    found = {name: each.shape for name, each in tensors.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        told = (f"{name} {_shape(found.get(name))}, expected {_shape(expected.get(name))}" for name in odd[:2])
        raise ValueError(
            f"{path}: its tensors are not those of the network that its plans describe; {len(odd)} differ: "
            f"{', '.join(told)}. "
            f"{plans.trainer} may build a network of its own: give that one, and its state dict as a plain file"
        )


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "scalar"
