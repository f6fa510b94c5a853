"""Weights as a MONAI bundle: the layout that MONAI's own tools, MONAI Label and 3D Slicer read.

Source: MONAI's bundle specification, https://docs.monai.io/en/latest/mb_specification.html, and the schema of its
metadata, https://project-monai.github.io/schema/meta_schema_20240725.json.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_atlas.contract import Contract
from lightning_atlas.intake.exported import OURS, check_network, described, written_aside
from lightning_atlas.intake.model_card import model_card

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "1.0.0"
"""Of a bundle that was just made; who changes it counts on."""
WINDOW = {"patch": [96, 96, 96], "overlap": 0.5}
IMAGE = {"keys": "image"}


def write_bundle(
    folder: Path,
    weights: Mapping[str, Tensor],
    contract: Contract,
    network: Mapping[str, Any],
    facts: Mapping[str, Any],
    half: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a bundle in one go; the arguments are those of `write_export`.

    Returns:
        What the card in `docs` was made from.

    Raises:
        ValueError: The folder is there; MONAI could not build the network, or has no transform for the intensities.
    """
    check_network(network)
    tensors = {name: each.half() if half and each.is_floating_point() else each for name, each in weights.items()}
    inference = inference_config(contract, network, facts["task"])
    with written_aside(folder, overwrite) as aside:
        for name in ("configs", "models", "docs"):
            (aside / name).mkdir()
        model = aside / "models" / "model.pt"
        torch.save({name: each.contiguous() for name, each in tensors.items()}, model)
        values = {
            "name": folder.name,
            "weights": described(model),
            "network": dict(network),
            "contract": contract.to_dict(),
            "classes": list(contract.classes),
            **facts,
        }
        metadata = bundle_metadata(contract, network, facts, values)
        for name, config in {"metadata": metadata, "inference": inference}.items():
            text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
            (aside / "configs" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        (aside / "docs" / "README.md").write_text(model_card(values, _use), encoding="utf-8")
        licence = facts["licence"]
        text = f"SPDX-License-Identifier: {licence}\n" if licence else "No licence was stated: all rights reserved.\n"
        (aside / "LICENSE").write_text(text, encoding="utf-8")
    return values


def _use(values: Mapping[str, Any]) -> list[str]:
    scans = "\"$sorted(glob.glob('SCANS/*.nii.gz'))\""
    return [
        "With MONAI and pytorch-ignite, from the folder of the bundle:",
        "",
        f"    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json "
        f"--datalist {scans}",
        "",
        f"The state dict is `models/model.pt`; the network is `{target_of(values['network'])['_target_']}`.",
    ]


def target_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network as MONAI's `ConfigParser` reads it; one that `as_network` wraps is MONAI's own."""
    if network["class_path"] == f"{OURS}.as_network":
        network = network["init_args"]["network"]
    return {"_target_": network["class_path"], **(network.get("init_args") or {})}


def inference_config(contract: Contract, network: Mapping[str, Any], task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what `configs/inference.json` holds: from files to files, by MONAI's transforms.

    Raises:
        ValueError: The intensities are normalised in a way that MONAI has no transform for, or windows or classes are
            decided on in a way that it does not know.
    """
    if network["class_path"] == f"{OURS}.ValidUNet":
        raise ValueError("windows of ValidUNet lack their faces, which MONAI's do not; export without --bundle")
    if (task or {}).get("threshold") and not contract.overlapping:
        raise ValueError(
            "a MONAI bundle puts a voxel into the likeliest class whatever its probability, and this task has a "
            "threshold; export without --bundle"
        )
    window = WINDOW | dict((task or {}).get("window", {}))
    load = {"_target_": "LoadImaged", **IMAGE, "ensure_channel_first": True}
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "output_dir": "$@bundle_root + '/eval'",
        "network_def": target_of(network),
        "network": "$@network_def.to(@device)",
        "preprocessing": _compose([load, *_transforms(contract)]),
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": window["patch"],
            "overlap": window["overlap"],
            "sw_batch_size": 1,
            "mode": "gaussian",
        },
        "postprocessing": _compose(_back(contract, (task or {}).get("threshold", 0.5))),
        "handlers": [
            {"_target_": "CheckpointLoader", "load_path": "@ckpt_path", "load_dict": {"model": "@network"}},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _compose(transforms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": transforms}


def _transforms(contract: Contract) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if contract.orientation:
        # The sides of the axes are written out: MONAI is changing what it takes without.
        sides = [list(pair) for pair in ("LR", "PA", "IS")]
        steps.append({"_target_": "Orientationd", **IMAGE, "axcodes": contract.orientation, "labels": sides})
    if contract.spacing_mm:
        steps.append({"_target_": "Spacingd", **IMAGE, "pixdim": list(contract.spacing_mm), "mode": "bilinear"})
    if contract.normalization is not None:
        steps.append({**_scaling(contract), **IMAGE})
    return [*steps, {"_target_": "EnsureTyped", **IMAGE, "dtype": "$torch.float32"}]


def _scaling(contract: Contract) -> dict[str, Any]:
    kind = contract.normalization
    if kind == "z-score":
        return {"_target_": "NormalizeIntensityd"}
    if contract.window is None or contract.range is None or kind not in ("window", "linear", "percentiles"):
        raise ValueError(f"a MONAI bundle has no transform for intensities taken by {kind}; export without --bundle")
    to = {"b_min": contract.range[0], "b_max": contract.range[1], "clip": kind != "linear"}
    if kind == "percentiles":
        low, high = contract.window
        return {"_target_": "ScaleIntensityRangePercentilesd", "lower": low, "upper": high, **to}
    return {"_target_": "ScaleIntensityRanged", "a_min": contract.window[0], "a_max": contract.window[1], **to}


def _back(contract: Contract, threshold: float) -> list[dict[str, Any]]:
    """Return the way from logits to files: probabilities go to the scan's own grid, and are decided there."""
    activation = {"sigmoid": True} if contract.overlapping else {"softmax": True}
    decision = {"threshold": threshold} if contract.overlapping else {"argmax": True}
    pred = {"keys": "pred"}
    return [
        {"_target_": "Activationsd", **pred, **activation},
        {
            "_target_": "Invertd",
            **pred,
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", **pred, **decision},
        {"_target_": "SaveImaged", **pred, "output_dir": "@output_dir", "output_postfix": "seg"},
    ]


def bundle_metadata(
    contract: Contract, network: Mapping[str, Any], facts: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what `configs/metadata.json` holds; every key that the specification and the schema require is there."""
    ours = target_of(network)["_target_"].startswith("lightning_atlas.")
    names = list(contract.classes) if contract.overlapping else ["background", *contract.classes]
    patch = (WINDOW | dict((facts["task"] or {}).get("window", {})))["patch"]
    mean = facts["metrics"]["mean"]["dice"] if facts["metrics"] else None
    scans = contract.modality or "3D"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "exported by lightning_atlas"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "nibabel": version("nibabel"),
            **({"lightning_atlas": import_module("lightning_atlas").__version__} if ours else {}),
        },
        "name": values["name"],
        "task": f"Segmentation of {len(contract.classes)} structures in {scans} scans",
        "description": f"Finds {', '.join(contract.classes)}. Trained on: "
        f"{(facts['training'] or {}).get('description') or 'not stated'}.",
        "authors": facts["citation"] or "not stated",
        "copyright": facts["licence"] or "not stated",
        "intended_use": "Research; no medical device. Not examined on scans of other origin than the training data.",
        "eval_metrics": {} if mean is None else {"mean_dice": mean},
        "references": [facts["citation"]] if facts["citation"] else [],
        "network_data_format": {
            "inputs": {"image": _input(contract, patch)},
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "classes" if contract.overlapping else "labels",
                    "num_channels": len(names),
                    "spatial_shape": list(patch),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(place): name for place, name in enumerate(names)},
                }
            },
        },
    }


def _input(contract: Contract, patch: list[int]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "hounsfield" if contract.modality == "CT" else "magnitude",
        "modality": contract.modality or "n/a",
        "num_channels": len(contract.channels),
        "spatial_shape": list(patch),
        "dtype": "float32",
        "value_range": list(contract.range or ()),
        "is_patch_data": True,
        "channel_def": {str(place): name for place, name in enumerate(contract.channels)},
    }
