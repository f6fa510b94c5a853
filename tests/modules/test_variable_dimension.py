"""Pictures of three slices teach a 3D network: what they teach, what they cannot, and what is refused."""

import json
from functools import partial
from typing import Any, cast

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchio.transforms import RandomFlip

from lightning_atlas.cli.inspecting import describe, in_words
from lightning_atlas.cli.run_folder import describe_run
from lightning_atlas.contract import Contract
from lightning_atlas.data import (
    ColoursToSlices,
    DrawnPictures,
    PictureDataModule,
    RandomColoursToSlices,
    RandomResizedCrop,
)
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


def small(features: int = 4, **settings: Any) -> R3D:
    return R3D(features=features, strides=(2, 1, 1, 2, 1, 1), **settings)


def module(network: Any = None, **settings: Any) -> VariableDimensionPretraining:
    torch.manual_seed(3)
    optimizer = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
    task = Classification(pooling="mean", label_smoothing=0.1)
    return VariableDimensionPretraining(network or small(), task, optimizer, **settings)


def fit(model: Any, data: Any = None, folder: Any = None, resume: Any = None, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    settings = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder, **quiet, **settings}
    trainer = lightning.Trainer(**settings)
    trainer.fit(model, datamodule=data or Pictures(), ckpt_path=resume)
    return trainer


def test_the_outer_planes_of_a_tall_stem_are_measured_told_and_kept(tmp_path, capsys):
    model = module()
    stem = model.network.get_parameter("backbone.conv1.weight")
    before = stem.detach().clone()
    trainer = fit(model, folder=tmp_path, logger=CSVLogger(tmp_path, name="", version=""))
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


def test_planes_that_weights_bring_are_not_called_untrained_and_never_overwritten(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"untrained_taps: zero would overwrite what start\.pt brings"):
        module(weights="start.pt", untrained_taps="zero")
    start = tmp_path / "start.pt"
    torch.save(module().network.state_dict(), start)
    model = module(weights=str(start))
    trainer = fit(model, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    told = "\n".join(read_file(tmp_path / "after.ckpt").notes)
    assert told == "backbone.conv1.weight: not trained by this run, as its weights brought them: 0, 6 of 7 along k"
    capsys.readouterr()


def test_a_checkpoint_is_filled_while_the_run_goes_on_unchanged(tmp_path):
    straight, filling = module(), module(untrained_taps="zero")
    fit(straight, max_epochs=2)
    fit(filling, folder=tmp_path, max_epochs=1, enable_checkpointing=True)
    path = next(tmp_path.rglob("*.ckpt"))
    assert not read_file(path).tensors["backbone.conv1.weight"][..., [0, 6]].any()
    resumed = module(untrained_taps="zero")
    fit(resumed, folder=tmp_path / "on", resume=path, max_epochs=2)
    ours, theirs = (dict(each.network.named_parameters()) for each in (resumed, straight))
    for name, value in theirs.items():
        inner = slice(1, 6) if name == "backbone.conv1.weight" else slice(None)
        torch.testing.assert_close(ours[name][..., inner], value[..., inner])


class Watch(lightning.Callback):
    """Keep what is learned from, and save when so many steps are done."""

    def __init__(self, path: Any = None, steps: int | None = None):
        self.path, self.steps = path, steps
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch["subject"], batch["image"].clone()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("steps", "workers"), [(2, 0), (4, 1)])
def test_a_run_that_stopped_within_an_epoch_goes_on_with_the_pictures_that_are_left(steps, workers, tmp_path):
    def data(**settings: Any) -> PictureDataModule:
        augment = [RandomResizedCrop((16, 16)), RandomFlip(axes=(0,)), RandomColoursToSlices()]
        source = DrawnPictures(12, 2, 0, (24, 20))
        return PictureDataModule(source, augment=augment, evaluate=[ColoursToSlices()], batch_size=4, **settings)

    whole, rest = Watch(tmp_path / "within.ckpt", steps), Watch()
    straight, resumed = module(), module()
    fit(straight, data(), max_epochs=3, callbacks=[whole])
    torch.manual_seed(99)
    fit(resumed, data(num_workers=workers), resume=tmp_path / "within.ckpt", max_epochs=3, callbacks=[rest])
    assert [epoch for epoch, *_ in whole.seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for ours, theirs in zip(rest.seen, whole.seen[steps:], strict=True):
        assert ours[:2] == theirs[:2]
        assert torch.equal(ours[2], theirs[2])
    named = dict(resumed.network.named_parameters())
    assert all(torch.equal(named[name], weight) for name, weight in straight.network.named_parameters())


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
    told = "backbone.conv1.weight: never trained, left as they are: 0, 6 of 7 along k"
    assert told in str(report)
    assert told in "\n".join(in_words(describe(source, str(tmp_path / "pictures.ckpt"))))
    wide = Classification(pooling="mean").adapted(small(features=8))
    with pytest.raises(ValueError, match=r"conv1.weight has 4 outputs there and 8 here.*features 4 where"):
        load_weights(wide, source)


def test_a_run_is_described_in_words_and_not_in_tensors(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    fit(module(), folder=tmp_path).save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    told = describe_run(tmp_path)
    assert "note: backbone.conv1.weight: never trained, left as they are: 0, 6 of 7 along k" in told
    assert "tensor(" not in told


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


def test_after_a_resume_what_was_seen_is_where_the_gradients_are():
    # Lightning reads the checkpoint before it moves the network to its device.
    kernel = nn.Conv3d(1, 1, 3, bias=False)
    taps = TrainedTaps()
    for _ in range(2):  # the third look asks the device for nothing
        taps.look(kernel)
    taps.load_state_dict({"weight": torch.zeros(3, 3, 3, dtype=torch.bool)})
    elsewhere = kernel.to("meta")
    elsewhere.weight.grad = torch.empty_like(elsewhere.weight)
    taps.look(elsewhere)
    assert taps.seen["weight"].device.type == "meta"


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
        (Contract(classes=("a", "b"), predicts="class"), {}, "do not say: take PictureDataModule, or .*LPS.* first in"),
        (PICTURES, {"depth": 5}, "the batch has 1 of 5: .*ColoursToSlices"),
        (PICTURES, {"channels": 3, "depth": 1}, "the batch has 3 of 1: .*ColoursToSlices"),
    ],
)
def test_data_that_are_no_pictures_are_refused(contract, shape, found):
    with pytest.raises(ValueError, match=found):
        fit(module(), Pictures(contract, **shape), num_sanity_val_steps=0)
