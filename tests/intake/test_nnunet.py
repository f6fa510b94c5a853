import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_atlas.intake.loading import load_weights, read_weights
from lightning_atlas.intake.nnunet import is_checkpoint, is_results, read_results, turned
from lightning_atlas.intake.nnunet_plans import Plans, nnunet_spec, results_contract
from lightning_atlas.intake.zoo import build_network
from lightning_atlas.networks import NnUNet, STUNet

RESULTS = Path(__file__).parent / "nnunet_results"
REFERENCE = Path(__file__).parents[1] / "networks" / "nnunet_reference.json"


def plans_of(**changes) -> Plans:
    """Return the plans of the folder that nnU-Net wrote, with other entries in its configuration."""
    plans = json.loads((RESULTS / "plans.json").read_text(encoding="utf-8"))
    plans["configurations"]["3d_fullres"] |= changes
    dataset = json.loads((RESULTS / "dataset.json").read_text(encoding="utf-8"))
    return Plans(plans, dataset, "3d_fullres", mirrored=(0, 1, 2))


def write_results(folder: Path, network: torch.nn.Module, plans: Plans, folds: str = "0", extra: object = None) -> Path:
    """Write a results folder in nnU-Net's layout."""
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)], "extra": extra},
        "_best_ema": np.float64(0.5),
        "init_args": {
            **{"plans": plans.plans, "configuration": plans.name, "fold": 0, "dataset_json": plans.dataset},
            "device": torch.device("cpu"),
        },
        "trainer_name": plans.trainer,
        "inference_allowed_mirroring_axes": tuple(plans.mirrored),
    }
    for fold in folds.split():
        (folder / f"fold_{fold}").mkdir(parents=True)
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    for name, values in {"plans": plans.plans, "dataset": plans.dataset}.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def in_nnunets_order(spec: dict, order: tuple[int, ...]) -> NnUNet:
    """Build the network of a spec with its axes as nnU-Net has them."""
    back = [order.index(axis) for axis in range(3)]
    sizes = {
        key: [[each[axis] for axis in back] for each in spec["init_args"][key]] for key in ("kernel_sizes", "strides")
    }
    return NnUNet(**spec["init_args"] | sizes)


def test_what_nnunet_wrote_computes_what_nnunet_computed():
    expected = json.loads(REFERENCE.read_text(encoding="utf-8"))["results"]
    source = read_weights(str(RESULTS))
    assert source.network is not None
    network = build_network(source.network)
    report = load_weights(network, source, source.contract.classes if source.contract else ())
    assert len(report.loaded) == expected["tensors"]
    assert not report.fresh
    assert not report.left_over
    k, j, i = expected["output"]["shape"][2:]
    theirs = torch.cos(0.37 * torch.arange(k * j * i, dtype=torch.float64) ** 1.3).view(1, 1, k, j, i)
    logits = network.double().eval()(theirs.permute(0, 1, 4, 3, 2))
    found = logits.detach().permute(0, 1, 4, 3, 2).flatten()[expected["output"]["places"]]
    torch.testing.assert_close(found.tolist(), expected["output"]["values"], rtol=1e-9, atol=1e-9)


def test_its_contract_is_what_nnunets_preprocessing_does():
    contract = read_results(RESULTS).contract
    assert contract is not None
    assert contract.classes == ("liver", "spleen")
    assert not contract.overlapping
    assert contract.spacing_mm == (0.7, 0.8, 3.0)
    assert (contract.modality, contract.orientation, contract.channels) == ("CT", None, ("image",))
    assert contract.mirrored_axes == ("i", "j", "k")
    scan = np.array([-1000.0, -160.0, 40.0, 320.0, 2000.0])
    theirs = (np.clip(scan, -160, 320) - 80) / 120
    assert contract.normalization == "window"
    assert contract.window
    assert contract.range
    ours = np.interp(scan, contract.window, contract.range)
    np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize("forward", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
def test_axes_that_plans_permute_come_back_in_order(tmp_path, forward):
    plans = plans_of()
    plans.plans["transpose_forward"] = list(forward)
    order = plans.order()
    theirs = in_nnunets_order(nnunet_spec(plans, batch_norm=False), order).double().eval()
    read = read_results(write_results(tmp_path / "results", theirs, plans._replace(mirrored=(0, 1))))
    assert read.network is not None
    assert read.contract is not None
    ours = build_network(read.network).double().eval()
    load_weights(ours, read)
    scan = torch.rand(1, 1, 6, 8, 4, dtype=torch.float64)
    array = scan.permute(0, 1, 4, 3, 2)  # as nnU-Net's readers return it
    seen = array.permute(0, 1, *(2 + axis for axis in forward))
    logits = theirs(seen).permute(0, 1, *(2 + forward.index(axis) for axis in range(3))).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(ours(scan), logits)
    spacing = plans.plans["configurations"]["3d_fullres"]["spacing"]
    assert read.contract.spacing_mm == tuple(spacing[axis] for axis in order)
    assert read.contract.mirrored_axes == tuple(name for name, axis in zip("ijk", order, strict=True) if axis != 2)


def test_plans_of_before_2_4_describe_the_same_network():
    new = plans_of().plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    old = plans_of(
        UNet_class_name="ResidualEncoderUNet",
        UNet_base_num_features=4,
        unet_max_num_features=6,
        n_conv_per_stage_encoder=new["n_blocks_per_stage"],
        n_conv_per_stage_decoder=new["n_conv_per_stage_decoder"],
        pool_op_kernel_sizes=new["strides"],
        conv_kernel_sizes=new["kernel_sizes"],
    )
    del old.plans["configurations"]["3d_fullres"]["architecture"]
    assert nnunet_spec(old, batch_norm=False) == nnunet_spec(plans_of(), batch_norm=False)


def test_a_configuration_inherits():
    plans = plans_of()
    plans.plans["configurations"]["3d_fullres_bs8"] = {"inherits_from": "3d_fullres", "batch_size": 8}
    spec = nnunet_spec(plans._replace(name="3d_fullres_bs8"), batch_norm=False)
    assert spec == nnunet_spec(plans_of(), batch_norm=False)
    with pytest.raises(ValueError, match="no configuration '2d'; it has 3d_fullres, 3d_fullres_bs8"):
        plans._replace(name="2d").configuration()


def test_regions_are_overlapping_classes_in_the_order_of_the_outputs():
    labels = {"background": 0, "whole_tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    plans = plans_of()._replace(
        dataset={"channel_names": {"0": "T1"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    )
    contract, _ = results_contract(plans)
    assert contract.classes == ("whole_tumor", "core", "enhancing")
    assert contract.overlapping
    assert nnunet_spec(plans, batch_norm=False)["init_args"]["out_channels"] == 3


def test_labels_go_by_their_numbers_and_ignore_is_none():
    plans = plans_of()
    plans.dataset["labels"] = {"background": 0, "spleen": 2, "ignore": 3, "liver": 1}
    assert plans.classes() == (("liver", "spleen"), False)
    plans.dataset["labels"] = {"background": 0, "spleen": 2}
    with pytest.raises(ValueError, match="numbered from 0 without gaps"):
        plans.classes()


@pytest.mark.parametrize(
    ("schemes", "masked", "normalization", "window"),
    [
        (["ZScoreNormalization"], [False], "z-score", None),
        (["ZScoreNormalization"], [True], "z-score of nonzero", None),
        (["RescaleTo01Normalization"], [False], "percentiles", (0.0, 100.0)),
        (["NoNormalization"], [False], "linear", (0.0, 1.0)),
        (["RGBTo01Normalization"], [False], "linear", (0.0, 255.0)),
        (["MyNormalization"], [False], None, None),
        (["CTNormalization", "ZScoreNormalization"], [False, False], None, None),
    ],
)
def test_normalisations(schemes, masked, normalization, window):
    plans = plans_of(normalization_schemes=schemes, use_mask_for_norm=masked)
    plans.dataset["channel_names"] = {str(n): name for n, name in enumerate(["CT", "PET"][: len(schemes)])}
    contract, doubts = results_contract(plans)
    assert (contract.normalization, contract.window) == (normalization, window)
    if normalization is None:
        assert any(schemes[0] in doubt or "each channel" in doubt for doubt in doubts)
    assert contract.channels == (("CT", "PET") if len(schemes) == 2 else ("image",))


def test_a_reader_that_turns_scans_states_their_orientation():
    plans = plans_of()
    assert any("orientation" in doubt for doubt in results_contract(plans)[1])
    plans.plans["image_reader_writer"] = "SimpleITKIOWithReorient"
    contract, doubts = results_contract(plans)
    assert contract.orientation == "RAS"
    assert not doubts


def test_a_checkpoint_alone_is_enough_and_its_file_is_read_like_its_folder(tmp_path):
    lone = tmp_path / "model.pth"
    shutil.copy(RESULTS / "fold_0" / "checkpoint_final.pth", lone)
    assert is_results(RESULTS)
    assert is_checkpoint(lone)
    found, expected = read_weights(str(lone)), read_weights(str(RESULTS))
    assert (found.network, found.contract) == (expected.network, expected.contract)
    assert all(torch.equal(found.tensors[name], each) for name, each in expected.tensors.items())


def test_an_ordinary_file_is_no_checkpoint_of_nnunet(tmp_path):
    torch.save({"network_weights": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("nothing", encoding="utf-8")
    assert not is_checkpoint(tmp_path / "other.pth")
    assert not is_checkpoint(tmp_path / "text.pth")
    assert not is_results(tmp_path)


def test_a_network_with_batch_norm_is_known_by_its_tensors(tmp_path):
    plans = plans_of()._replace(trainer="nnUNetTrainerBN")
    theirs = in_nnunets_order(nnunet_spec(plans, batch_norm=True), plans.order())
    read = read_results(write_results(tmp_path / "results", theirs, plans))
    assert read.network is not None
    assert read.network["init_args"]["norm"] == "batch"


def test_an_stu_net_that_was_trained_in_nnunet_is_found(tmp_path):
    plans = plans_of()._replace(trainer="STUNetTrainer_small")  # two strides in the plans, filled up to six
    strides = (1, (1, 2, 2), *([1] * 4))
    theirs = STUNet(1, 3, (2, 4, 4, 4, 4, 4), (1, 2, 1, 1, 1, 1), strides, deep_supervision=True).eval()
    read = read_results(write_results(tmp_path / "results", theirs, plans))
    assert read.network is not None
    assert read.network["init_args"]["depths"] == [1, 2, 1, 1, 1, 1]
    ours = build_network(read.network).double().eval()
    load_weights(ours, read)
    scan, theirs = torch.rand(1, 1, 8, 8, 4, dtype=torch.float64), theirs.double()
    torch.testing.assert_close(ours(scan), theirs(scan.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2))


def test_tensors_of_another_network_are_refused(tmp_path):
    plans = plans_of()._replace(trainer="nnUNetTrainerMine")
    other = NnUNet(1, 3, (4, 8), (3, 3), (1, 2), (1, 1, 1))
    with pytest.raises(ValueError, match=r"not those of the network that its plans describe.* nnUNetTrainerMine"):
        read_results(write_results(tmp_path / "results", other, plans))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [64, 64]}, "3d_fullres is a 2D network; expected 3d_fullres or 3d_lowres"),
        ({"previous_stage": "3d_lowres"}, "takes the prediction of 3d_lowres as further channels"),
        ({"architecture": {"network_class_name": "a.Primus", "arch_kwargs": {}}}, "its network is nnU-Net's Primus"),
        ({"architecture": {}}, "not as nnU-Net v2 writes them"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused_by_file(tmp_path, changes, message):
    results = write_results(tmp_path / "results", NnUNet(1, 3, (4, 6), (3, 3), (1, 2), (1, 1, 1)), plans_of(**changes))
    with pytest.raises(ValueError, match=rf"checkpoint_final.pth: .*{message}"):
        read_results(results)


def test_an_argument_of_another_network_is_refused():
    plans = plans_of()
    arch_kwargs = plans.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arch_kwargs["norm_op"] = "torch.nn.modules.normalization.GroupNorm"
    with pytest.raises(ValueError, match=r"what NnUNet does not: norm_op torch\.nn\.modules\.normalization\.GroupNorm"):
        nnunet_spec(plans, batch_norm=False)


def test_a_fold_is_chosen_and_a_missing_one_named(tmp_path):
    theirs = in_nnunets_order(nnunet_spec(plans_of(), batch_norm=False), plans_of().order())
    results = write_results(tmp_path / "results", theirs, plans_of(), folds="0 1 all")
    read = read_results(results)
    assert Path(read.origin).parent.name == "fold_all"
    assert any("one of 3 folds" in doubt for doubt in read.card["doubts"])
    assert Path(read_results(results, fold="1").origin).parent.name == "fold_1"
    with pytest.raises(ValueError, match=r"no fold_3/checkpoint_final.pth; it has fold_0/checkpoint_final.pth, fold_1"):
        read_results(results, fold="3")


class Runs:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_nothing_of_a_checkpoint_is_executed(tmp_path, working_folder):
    network = in_nnunets_order(nnunet_spec(plans_of(), batch_norm=False), plans_of().order())
    results = write_results(tmp_path / "results", network, plans_of(), extra=Runs())
    with pytest.raises(ValueError, match="exec was blocked"):
        read_results(results)
    assert not is_checkpoint(results / "fold_0" / "checkpoint_final.pth")
    assert not (working_folder / "ran").exists()


def test_what_shares_memory_in_the_file_shares_it_here():
    network = NnUNet(1, 3, (4, 6), (3, 3), (1, 2), (1, 1, 1))
    state = network.state_dict()
    found = turned(state)
    assert len({each.data_ptr() for each in found.values()}) == len({each.data_ptr() for each in state.values()})
    kernel = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(found[kernel], state[kernel].permute(0, 1, 4, 3, 2))
