"""What the plans of nnU-Net v2 say, in the words of this library: the network and the contract, along i, j, k."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_atlas.contract import Contract

AXES = "ijk"
PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
NETWORKS = "lightning_atlas.networks."
REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
"""nnU-Net's readers that turn every scan to RAS; the others take the voxel grid as the file has it."""
MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR", "pet": "PET", "pt": "PET"}
STU_LEVELS = 6
"""STU-Net's trainers cut the planned strides to so many levels, or fill them up with ones."""


class Plans(NamedTuple):
    """What lies beside a checkpoint, and what the checkpoint itself says.

    Args:
        plans: Content of `plans.json`.
        dataset: Content of `dataset.json`.
        name: Of the configuration, such as `3d_fullres`.
        trainer: Name of nnU-Net's trainer.
        mirrored: The network's axes (0, 1, 2) along which training mirrored images.
    """

    plans: dict[str, Any]
    dataset: dict[str, Any]
    name: str
    trainer: str = "nnUNetTrainer"
    mirrored: Sequence[int] = ()

    def configuration(self) -> dict[str, Any]:
        """Return the configuration with what it inherits.

        Raises:
            ValueError: There is none of this name, or it is not one for whole 3D images alone.
        """
        found = _inherited(self.plans["configurations"], self.name)
        if len(found["patch_size"]) != 3:
            raise ValueError(f"{self.name} is a 2D network; expected 3d_fullres or 3d_lowres")
        if found.get("previous_stage"):
            raise ValueError(
                f"{self.name} takes the prediction of {found['previous_stage']} as further channels, which nothing "
                f"here makes; take the results of 3d_fullres or {found['previous_stage']}"
            )
        return found

    def order(self) -> tuple[int, int, int]:
        """Return the network's axis for each of i, j, k: nnU-Net reads k, j, i, and plans may permute these."""
        forward = list(self.plans.get("transpose_forward", (0, 1, 2)))
        i, j, k = (forward.index(2 - axis) for axis in range(3))
        return i, j, k

    def channels(self) -> list[str]:
        """Return the names of the input channels."""
        names = self.dataset.get("channel_names", self.dataset.get("modality"))
        if not names:
            raise ValueError("dataset.json names no channels; expected channel_names")
        return [str(name) for _, name in sorted(names.items(), key=lambda each: int(each[0]))]

    def classes(self) -> tuple[tuple[str, ...], bool]:
        """Return the classes in the order of the outputs, and whether they overlap (nnU-Net's regions)."""
        labels = {name: value for name, value in self.dataset["labels"].items() if name != "ignore"}
        if any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values()):
            return tuple(name for name, value in labels.items() if set(_values(value)) != {0}), True
        numbers = {name: _values(value)[0] for name, value in labels.items()}
        ordered = sorted(numbers, key=lambda name: numbers[name])
        if [numbers[name] for name in ordered] != list(range(len(ordered))):
            raise ValueError(f"the labels of dataset.json are not numbered from 0 without gaps: {numbers}")
        return tuple(ordered[1:]), False

    def outputs(self) -> int:
        """Return how many the network has: with labels that exclude each other, one for the background too."""
        classes, overlapping = self.classes()
        return len(classes) + (not overlapping)


def nnunet_spec(plans: Plans, batch_norm: bool) -> dict[str, Any]:
    """Return `class_path` and `init_args` of the network that the plans describe, with the outputs of all levels.

    Args:
        plans: In the format of nnU-Net 2.4 or of the versions before.
        batch_norm: The checkpoint has running statistics, as those of `nnUNetTrainerBN` do, whatever the plans say.

    Raises:
        ValueError: It is a network that this library does not have.
    """
    kind, sizes = _architecture(plans.configuration())
    order, residual = plans.order(), kind == RESIDUAL
    levels = len(sizes["strides"])
    encoder = sizes["n_blocks_per_stage" if residual else "n_conv_per_stage"]
    arguments = {
        "in_channels": len(plans.channels()),
        "out_channels": plans.outputs(),
        "features": _each(sizes["features_per_stage"], levels),
        "kernel_sizes": [_turned(each, order) for each in _each(sizes["kernel_sizes"], levels)],
        "strides": [_turned(each, order) for each in sizes["strides"]],
        "depths": [*_each(encoder, levels), *_each(sizes["n_conv_per_stage_decoder"], levels - 1)],
        "residual": residual,
        "norm": "batch" if batch_norm or "BatchNorm" in sizes["norm_op"] else "instance",
        "activation": "leaky_relu" if "LeakyReLU" in sizes["nonlin"] else "relu",
        "deep_supervision": True,
    }
    return {"class_path": f"{NETWORKS}NnUNet", "init_args": arguments}


def stu_net_spec(plans: Plans, features: Sequence[int], depths: Sequence[int]) -> dict[str, Any]:
    """Return `class_path` and `init_args` of an STU-Net that was trained in nnU-Net, whose plans say less of it.

    Args:
        plans: The strides are these, for as many levels as STU-Net has.
        features: Channels of each level, as the checkpoint has them.
        depths: Blocks of each level, as the checkpoint has them.
    """
    planned = _architecture(plans.configuration())[1]["strides"]
    strides = [*planned, *([1, 1, 1] for _ in range(STU_LEVELS))][:STU_LEVELS]
    arguments = {
        "in_channels": len(plans.channels()),
        "out_channels": plans.outputs(),
        "features": list(features),
        "depths": list(depths),
        "strides": [_turned(each, plans.order()) for each in strides],
        "deep_supervision": True,
    }
    return {"class_path": f"{NETWORKS}STUNet", "init_args": arguments}


def results_contract(plans: Plans) -> tuple[Contract, list[str]]:
    """Return what the network expects of an image, and what of that a contract cannot say."""
    configuration, order = plans.configuration(), plans.order()
    i, j, k = (float(configuration["spacing"][axis]) for axis in order)
    channels, (classes, overlapping) = plans.channels(), plans.classes()
    kinds = {MODALITIES.get(name.lower()) for name in channels}
    intensities, doubts = _intensities(plans)
    turned = plans.plans.get("image_reader_writer") in REORIENTING
    if not turned:
        doubts.append(
            "nnU-Net took each scan on the voxel grid of its file and did not write down which that was, so the "
            "contract has no orientation: give scans that are oriented as the training scans were"
        )
    if configuration.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        doubts.append(f"training scans went through {configuration['preprocessor_name']}, which is not known here")
    if dropout := _architecture(configuration)[1].get("dropout_op"):
        doubts.append(f"training had {dropout}, which is left out here; results in evaluation are the same")
    contract = Contract(
        classes=classes,
        modality=kinds.pop() if len(kinds) == 1 else None,
        orientation="RAS" if turned else None,
        spacing_mm=(i, j, k),
        channels=tuple(channels) if len(channels) > 1 else ("image",),
        mirrored_axes=tuple(name for name, axis in zip(AXES, order, strict=True) if axis in plans.mirrored),
        overlapping=overlapping,
        **intensities,
    )
    return contract, doubts


def _intensities(plans: Plans) -> tuple[dict[str, Any], list[str]]:
    configuration = plans.configuration()
    schemes, masked = configuration["normalization_schemes"], configuration.get("use_mask_for_norm", [])
    properties = plans.plans.get("foreground_intensity_properties_per_channel") or plans.plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    told = [
        _scheme(scheme, properties.get(str(number), {}), number < len(masked) and masked[number])
        for number, scheme in enumerate(schemes)
    ]
    if any(each != told[0] for each in told):
        each = "; ".join(f"{name}: {values}" for name, values in zip(plans.channels(), told, strict=True))
        return {}, [f"each channel has intensities of its own, and a contract has room for one: {each}"]
    if not told[0]:
        return {}, [f"intensities go through nnU-Net's {schemes[0]}, which is not known here"]
    if told[0]["normalization"].startswith("z-score"):
        return told[0], ["mean and spread are those of the scan cropped to what is not 0, before it is resampled"]
    return told[0], []


def _scheme(name: str, properties: Mapping[str, float], masked: bool) -> dict[str, Any]:
    """Return a normalisation of nnU-Net as a contract has it; what it does is linear between two ends."""
    if name == "CTNormalization":
        low, high = properties["percentile_00_5"], properties["percentile_99_5"]
        ends = tuple((end - properties["mean"]) / max(properties["std"], 1e-8) for end in (low, high))
        return {"normalization": "window", "window": (float(low), float(high)), "range": ends}
    if name == "ZScoreNormalization":
        return {"normalization": "z-score of nonzero" if masked else "z-score"}
    linear = {
        "NoNormalization": ("linear", (0.0, 1.0)),
        "RescaleTo01Normalization": ("percentiles", (0.0, 100.0)),
        "RGBTo01Normalization": ("linear", (0.0, 255.0)),
    }
    if name not in linear:
        return {}
    kind, window = linear[name]
    return {"normalization": kind, "window": window, "range": (0.0, 1.0)}


def _inherited(configurations: Mapping[str, Any], name: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    if name not in configurations or name in heirs:
        raise ValueError(f"plans.json has no configuration {name!r}; it has {', '.join(configurations)}")
    own = configurations[name]
    parent = own.get("inherits_from")
    return {**(_inherited(configurations, parent, (*heirs, name)) if parent else {}), **own}


def _architecture(configuration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return kind and arguments of the network, from plans of either format.

    Raises:
        ValueError: A kind, or an argument, that this library does not have.
    """
    if "architecture" in configuration:
        kind = str(configuration["architecture"]["network_class_name"]).rpartition(".")[2]
        sizes = configuration["architecture"]["arch_kwargs"]
    else:
        kind, sizes = str(configuration["UNet_class_name"]), _before_2_4(configuration)
    if kind not in (PLAIN, RESIDUAL):
        raise ValueError(f"its network is nnU-Net's {kind}; this library has {PLAIN} and {RESIDUAL}")
    fixed = {
        "conv_bias": (True,),
        "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
        "nonlin_first": (False, None),
        "bottleneck_channels": (None,),
        "stem_channels": (None, _each(sizes["features_per_stage"], 1)[0]),
        "block": (None,),
        "nonlin_kwargs": ({"inplace": True}, {}, None),
    }
    odd = [f"{name} {sizes[name]}" for name, known in fixed.items() if name in sizes and sizes[name] not in known]
    for name, kinds in {"norm_op": ("InstanceNorm3d", "BatchNorm3d"), "nonlin": ("LeakyReLU", "ReLU")}.items():
        if str(sizes.get(name)).rpartition(".")[2] not in kinds:
            odd.append(f"{name} {sizes.get(name)}")
    if odd:
        raise ValueError(f"its network has what NnUNet does not: {', '.join(odd)}")
    return kind, sizes


def _before_2_4(configuration: Mapping[str, Any]) -> dict[str, Any]:
    residual = configuration["UNet_class_name"] == RESIDUAL
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    depths = configuration["n_conv_per_stage_encoder"]
    return {
        "features_per_stage": [min(base * 2**level, most) for level in range(len(depths))],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": depths,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "norm_op": "torch.nn.InstanceNorm3d",
        "nonlin": "torch.nn.LeakyReLU",
    }


def _each(values: Any, count: int) -> list[Any]:
    return [values] * count if isinstance(values, int) else list(values)[:count]


def _turned(size: Any, order: Sequence[int]) -> list[int]:
    sides = [size] * 3 if isinstance(size, int) else size
    return [int(sides[axis]) for axis in order]


def _values(label: Any) -> list[int]:
    return [int(each) for each in label] if isinstance(label, list | tuple) else [int(label)]
