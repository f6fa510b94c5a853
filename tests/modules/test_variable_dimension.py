"""Pictures of three slices teach a 3D network: what they teach, what they cannot, and what is refused."""

import json
from functools import partial
from typing import Any, cast

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.contract import Contract
from lightning_atlas.intake import load_weights
from lightning_atlas.intake.weights import read_file
from lightning_atlas.modules import VariableDimensionPretraining
from lightning_atlas.modules.taps import TrainedTaps, filled, strength, untrained_planes
from lightning_atlas.networks import R3D, UNet
from lightning_atlas.networks.depth import DepthPolicy, set_depth
from lightning_atlas.tasks import Classification

PICTURES = Contract(classes=("bird", "cat"), orientation="LPS", predicts="class", modality="photograph")


def picture_batch(number: int, pictures: int = 4, depth: int = 3, channels: int = 1) -> Any:
    generator = torch.Generator().manual_seed(number)
    unknown = torch.zeros(pictures, 1, 0)
    return {
        "image": torch.randn(pictures, channels, 32, 32, depth, generator=generator),
        "label": torch.zeros(pictures, 32, 32, depth, dtype=torch.uint8),
        "states": unknown.to(torch.int8),
        "drawn": unknown.bool(),
        "background": torch.full((pictures, 1), -1, dtype=torch.int8),
        "index": torch.arange(pictures),
        "spacing_mm": torch.ones(pictures, 3),
        "affine": torch.eye(4).repeat(pictures, 1, 1),
        "subject": [f"{number}-{n}" for n in range(pictures)],
        "target": torch.arange(pictures) % 2,
    }


class Pictures(lightning.LightningDataModule):
    batches_per_epoch = 4

    def __init__(self, contract: Contract = PICTURES, **shape: int):
        super().__init__()
        self.contract = contract
        self.shape = shape

    def train_dataloader(self):
        return DataLoader(cast(Dataset, [picture_batch(n, **self.shape) for n in range(4)]), batch_size=None)

    def val_dataloader(self):
        return DataLoader(cast(Dataset, [picture_batch(9, **self.shape)]), batch_size=None)

    test_dataloader = val_dataloader


def small(**settings: Any) -> R3D:
    return R3D(features=4, strides=(2, 1, 1, 2, 1, 1), **settings)


def module(network: Any = None, **settings: Any) -> VariableDimensionPretraining:
    torch.manual_seed(3)
    optimizer = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
    task = Classification(pooling="mean", label_smoothing=0.1)
    return VariableDimensionPretraining(network or small(), task, optimizer, **settings)


def fit(model: Any, data: Any = None, folder: Any = None, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    settings = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder, **quiet, **settings}
    trainer = lightning.Trainer(**settings)
    trainer.fit(model, datamodule=data or Pictures())
    return trainer


def test_the_outer_planes_of_a_tall_stem_are_measured_told_and_kept(tmp_path, capsys):
    model = module()
    stem = model.network.get_parameter("backbone.conv1.weight")
    before = stem.detach().clone()
    trainer = fit(model, folder=tmp_path)
    (found,) = model.taps.untrained()
    assert found.kernel == "backbone.conv1.weight"
    assert found.planes == {"k": [0, 6]}
    moved = (stem != before).flatten(0, 3).any(0)
    assert moved.tolist() == [False, True, True, True, True, True, False]
    assert "backbone.conv1.weight: 0, 6 of 7 along k" in capsys.readouterr().out
    told = json.loads((tmp_path / "taps.json").read_text(encoding="utf-8"))
    assert told["steps"] == trainer.global_step == 4
    assert told["kernels"]["backbone.conv1.weight"]["untrained"] == {"k": [0, 6]}


def test_repeated_slices_train_every_plane():
    model = module(small(depth_policy=DepthPolicy(padding="replicate")))
    fit(model)
    assert model.taps.untrained() == []


def test_planes_that_small_maps_never_meet_are_told_along_every_axis():
    # 32 voxels are one behind five halvings, and a kernel of 3 then meets only its middle.
    model = module(R3D(features=4, strides=(2, 2, 2, 2, 2, 2)))
    fit(model)
    planes = {each.kernel: each.planes for each in model.taps.untrained()}
    assert planes["backbone.layer4.1.conv1.weight"] == {"i": [0, 2], "j": [0, 2]}
    assert planes["backbone.conv1.weight"] == {"k": [0, 6]}


@pytest.mark.parametrize("how", ["zero", "nearest"])
def test_filling_changes_what_deep_scans_are_answered_and_never_pictures(how, tmp_path):
    kept, other = module(), module(untrained_taps=how)
    for each in (kept, other):
        trainer = fit(each, folder=tmp_path / how)
        each.eval()
        trainer.save_checkpoint(tmp_path / f"{how}-{each.untrained_taps}.ckpt")
    picture, scan = torch.randn(1, 1, 32, 32, 3), torch.randn(1, 1, 32, 32, 9)
    torch.testing.assert_close(other.network(picture), kept.network(picture))
    assert not torch.allclose(other.network(scan), kept.network(scan))
    stem = other.network.get_parameter("backbone.conv1.weight")
    nearest = torch.zeros(()) if how == "zero" else stem[..., 1]
    assert torch.equal(stem[..., 0], nearest.expand_as(stem[..., 0]))
    saved = read_file(tmp_path / f"{how}-{how}.ckpt").tensors["backbone.conv1.weight"]
    assert torch.equal(saved, stem)


def test_a_checkpoint_is_filled_while_the_run_goes_on_unchanged(tmp_path):
    straight, filling = module(), module(untrained_taps="zero")
    fit(straight, max_epochs=2)
    fit(filling, folder=tmp_path, max_epochs=1, enable_checkpointing=True)
    path = next(tmp_path.rglob("*.ckpt"))
    assert not read_file(path).tensors["backbone.conv1.weight"][..., [0, 6]].any()
    resumed = module(untrained_taps="zero")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer: Any = lightning.Trainer(max_epochs=2, default_root_dir=tmp_path / "on", **quiet)
    trainer.fit(resumed, datamodule=Pictures(), ckpt_path=path)
    ours, theirs = (dict(each.network.named_parameters()) for each in (resumed, straight))
    for name, value in theirs.items():
        inner = slice(1, 6) if name == "backbone.conv1.weight" else slice(None)
        torch.testing.assert_close(ours[name][..., inner], value[..., inner])


def test_weights_say_what_they_never_learned(tmp_path):
    model = module()
    fit(model, folder=tmp_path).save_checkpoint(tmp_path / "pictures.ckpt")
    source = read_file(tmp_path / "pictures.ckpt")
    assert source.contract is not None
    assert source.contract.orientation == "LPS"
    target = Classification(pooling="mean").adapted(small())
    set_depth(target, DepthPolicy(strides="stride"))
    report = load_weights(target, source)
    assert report.encoder_share == 1.0
    assert "backbone.conv1.weight: never trained, left as they are: 0, 6 of 7 along k" in str(report)


def test_a_step_that_is_not_finite_shows_nothing():
    layer, taps = nn.Conv3d(1, 2, 3), TrainedTaps()
    layer.weight.grad = torch.full_like(layer.weight, float("nan"))
    taps.look(layer)
    assert taps.untrained() == []  # a kernel without any gradient is at rest
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[1, 0, :, :, 1] = 2.0
    taps.look(layer)
    assert taps.untrained()[0].planes == {"k": [0, 2]}


def test_kernels_that_were_trained_whole_are_looked_at_no_more():
    layer, taps = nn.Conv3d(1, 2, 3), TrainedTaps()
    layer.weight.grad = torch.ones_like(layer.weight)
    taps.look(layer)
    seen = taps.seen["weight"]
    taps.look(layer)
    assert taps.seen["weight"] is seen


def test_planes_are_filled_from_the_nearest_along_each_axis():
    taps = torch.zeros(3, 1, 5, dtype=torch.bool)
    taps[1, :, 1:3] = True
    kernel = torch.arange(15.0).view(1, 1, 3, 1, 5)
    assert untrained_planes(taps) == {"i": [0, 2], "j": [], "k": [0, 3, 4]}
    assert filled(kernel, taps, "nearest")[0, 0, :, 0].tolist() == [[6.0, 6.0, 7.0, 7.0, 7.0]] * 3
    zeroed = filled(kernel, taps, "zero")[0, 0, :, 0]
    assert zeroed.tolist() == [[0.0] * 5, [0.0, 6.0, 7.0, 0.0, 0.0], [0.0] * 5]
    assert filled(kernel, taps, "keep") is kernel


def test_strength_is_of_the_untrained_over_the_trained():
    kernel, taps = torch.ones(2, 2, 1, 1, 3), torch.tensor([True, True, False]).view(1, 1, 3)
    kernel[..., 2] = 0.25
    assert strength(kernel, taps) == pytest.approx(0.25)


def test_the_parts_of_several_processes_are_one():
    layer, taps = nn.Conv3d(1, 2, 3), TrainedTaps()
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[..., 1] = 1.0
    taps.look(layer)
    other = torch.zeros(3, 3, 3, dtype=torch.uint8)
    other[..., 2] = 1
    taps.unite(lambda own: torch.maximum(own, other))
    assert taps.untrained()[0].planes == {"k": [0]}


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (lambda: small(depth_policy=DepthPolicy(strides="stride")), r"R3D leaves 2, .*depth_policy"),
        (lambda: small(depth_policy=DepthPolicy(pools={3: "merge"})), r"R3D leaves 3, 3, 3, 3, 1 .*depth_policy"),
        (lambda: UNet(features=(4, 8)), r"UNet leaves 3, 2 .*R3D or P3D"),
    ],
)
def test_networks_that_lose_slices_are_refused(network, found):
    with pytest.raises(ValueError, match=found):
        module(network())


@pytest.mark.parametrize(
    ("contract", "shape", "found"),
    [
        (Contract(classes=("a", "b"), orientation="RAS", predicts="class"), {}, "the data are RAS: take Picture"),
        (Contract(("a", "b"), channels=("r", "g", "b"), predicts="class"), {}, r"have 3 \(r, g, b\): .*ColoursToSlic"),
        (PICTURES, {"depth": 5}, "the batch has 1 of 5: .*ColoursToSlices"),
        (PICTURES, {"channels": 3, "depth": 1}, "the batch has 3 of 1: .*ColoursToSlices"),
    ],
)
def test_data_that_are_no_pictures_are_refused(contract, shape, found):
    with pytest.raises(ValueError, match=found):
        fit(module(), Pictures(contract, **shape), num_sanity_val_steps=0)
