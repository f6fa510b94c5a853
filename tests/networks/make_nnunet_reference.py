"""Write what nnU-Net's own networks compute, for the tests that compare ours with them.

Needs nnunetv2 (2.8.1 was used) in an environment of its own; run in the folder of the repository:

    python tests/networks/make_nnunet_reference.py

It writes tests/networks/nnunet_reference.json and tests/intake/nnunet_results, a results folder whose checkpoint
nnU-Net's own `save_checkpoint` wrote.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
RESULTS = HERE.parent / "intake" / "nnunet_results"

PLAIN = {
    "features_per_stage": [4, 6, 8],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
}
UNEVEN = PLAIN | {
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [1, 2, 3],
    "n_conv_per_stage_decoder": [1, 2],
}
RESIDUAL = {
    "features_per_stage": [4, 6, 6],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 3, 2],
    "n_conv_per_stage_decoder": [1, 1],
}
UNEVEN_RESIDUAL = RESIDUAL | {"kernel_sizes": UNEVEN["kernel_sizes"], "strides": UNEVEN["strides"]}
COMMON = {
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
BATCH = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d", "nonlin": "torch.nn.ReLU"}
SMALL = {
    "features_per_stage": [4, 6],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2]],
    "n_blocks_per_stage": [1, 2],
    "n_conv_per_stage_decoder": [1],
}
CASES = {
    "plain": PLAIN | COMMON,
    "plain_uneven": UNEVEN | COMMON,
    "plain_batch_norm_relu": PLAIN | COMMON | BATCH,
    "residual": RESIDUAL | COMMON,
    "residual_uneven": UNEVEN_RESIDUAL | COMMON,
}
SIX_STAGES = {
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *([[2, 2, 2]] * 5)],
    **COMMON,
}
PLANNED = {
    "plain": SIX_STAGES | {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5},
    "residual": SIX_STAGES | {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5},
}
SIDES = (8, 8, 12)


def fill(network: nn.Module) -> None:
    """Give every number a value that depends on its name and place alone; tests/networks/conftest.py does the same."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            phase = sum(place * ord(letter) for place, letter in enumerate(name, 1)) % 997
            wave = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + phase).view(tensor.shape)
            positive = "norm" in name and name.endswith(("weight", "running_var"))
            tensor.data.copy_(1 + 0.3 * wave if positive else 0.3 * wave)


def image(channels: int, sides: tuple[int, ...] = SIDES) -> Tensor:
    count = channels * sides[0] * sides[1] * sides[2]
    return torch.cos(0.37 * torch.arange(count, dtype=torch.float64) ** 1.3).view(1, channels, *sides)


def build(arch_kwargs: dict, channels: int, outputs: int) -> nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # pyright: ignore[reportMissingImports]

    kind = "ResidualEncoderUNet" if "n_blocks_per_stage" in arch_kwargs else "PlainConvUNet"
    stages = len(arch_kwargs["strides"])
    network = get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{kind}",
        {"n_stages": stages, "conv_op": "torch.nn.modules.conv.Conv3d", **arch_kwargs},
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
        channels,
        outputs,
        deep_supervision=True,
    )
    fill(network)
    return network.double().eval()


def summary(network: nn.Module) -> dict[str, object]:
    state = network.state_dict()
    lines = "".join(f"{name} {list(tensor.shape)}\n" for name, tensor in state.items())
    return {"tensors": len(state), "names_and_shapes_sha256": hashlib.sha256(lines.encode()).hexdigest()}


def numbers(output: Tensor) -> dict[str, object]:
    flat = output.detach().flatten()
    places = [round(share * (flat.numel() - 1)) for share in (0, 0.21, 0.43, 0.64, 0.86, 1)]
    return {"shape": list(output.shape), "places": places, "values": flat[places].tolist(), "std": flat.std().item()}


def make_networks() -> dict[str, object]:
    cases = {}
    for name, arch_kwargs in CASES.items():
        network = build(arch_kwargs, 2, 3)
        outputs = [numbers(each) for each in network(image(2))]
        cases[name] = {"arch_kwargs": arch_kwargs, **summary(network), "outputs": outputs}
    return cases


def count_parameters() -> dict[str, int]:
    networks = {name: build(arch_kwargs, 1, 3) for name, arch_kwargs in PLANNED.items()}
    return {name: sum(each.numel() for each in network.parameters()) for name, network in networks.items()}


def make_results() -> dict[str, object]:
    from nnunetv2.training.logging.nnunet_logger import LocalLogger  # pyright: ignore[reportMissingImports]
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore[reportMissingImports]

    arch_kwargs = {"n_stages": 2, "conv_op": "torch.nn.modules.conv.Conv3d", **SMALL, **COMMON}
    plans = {
        "dataset_name": "Dataset901_Reference",
        "plans_name": "nnUNetResEncUNetMPlans",
        "original_median_spacing_after_transp": [3.0, 0.8, 0.7],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "batch_size": 2,
                "patch_size": [8, 16, 16],
                "spacing": [3.0, 0.8, 0.7],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
                    "arch_kwargs": arch_kwargs,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 80.0, "std": 120.0, "percentile_00_5": -160.0, "percentile_99_5": 320.0}
        },
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    network = build(SMALL | COMMON, 1, 3)
    trainer = object.__new__(nnUNetTrainer)
    trainer.local_rank, trainer.disable_checkpointing, trainer.is_ddp = 0, False, False
    trainer.network = network.float()
    trainer.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    trainer.grad_scaler = None
    trainer.logger = LocalLogger()
    for key, value in {"mean_fg_dice": np.mean([0.5, 0.7]), "train_losses": np.float32(-0.4)}.items():
        trainer.logger.log(key, value, 0)
    trainer.logger.log("dice_per_class_or_region", list(np.array([0.5, 0.7])), 0)
    trainer._best_ema, trainer.current_epoch = np.float64(0.6), 1
    settings = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset}
    trainer.my_init_kwargs = settings | {"device": torch.device("cpu")}
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    fold = RESULTS / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    for name, content in {"plans": plans, "dataset": dataset}.items():
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return {"tensors": len(network.state_dict()), "output": numbers(network.double()(image(1))[0])}


def main() -> None:
    made = {name: version(name) for name in ("nnunetv2", "dynamic_network_architectures", "torch", "numpy")}
    content = {"made_with": made, "networks": make_networks(), "parameters": count_parameters()}
    content["results"] = make_results()
    path = HERE / "nnunet_reference.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
