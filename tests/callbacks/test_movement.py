import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import matplotlib.image
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset

from lightning_atlas.adaptation import FrozenEncoder, HeadOnly
from lightning_atlas.callbacks.movement import Movement, StageMovement, movement_picture, movement_table
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.modules import TransferLearning
from lightning_atlas.networks import UNet
from lightning_atlas.networks.base import stage_parameters
from lightning_atlas.tasks import Segmentation

STAGES = ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1", "head"]
SHAPE = (4, 6, 8)


class Patches(lightning.LightningDataModule):
    """Four batches of noise in which bright voxels are liver."""

    contract = Contract(classes=("liver",))
    batches_per_epoch = 4

    def train_dataloader(self) -> DataLoader:
        images = [torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(4)]
        states = torch.tensor([[-1], [0], [1]], dtype=torch.int8).repeat(2, 1, 1)
        batches = [
            {
                "image": image,
                "label": 1 + (image[:, 0] > 1).to(torch.int16),
                "states": states,
                "drawn": states >= 0,
                "background": torch.tensor([-1, 1, 0], dtype=torch.int8).repeat(2, 1),
                "index": torch.arange(2),
                "subject": ["a", "b"],
            }
            for image in images
        ]
        return DataLoader(cast(Dataset, batches), batch_size=None)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    tensors = {n: t for n, t in UNet(features=SHAPE).state_dict().items() if not n.startswith("head")}
    torch.save(tensors, tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def make(weights: str | None, *adaptation: Any) -> TransferLearning:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    task = Segmentation(SlidingWindow(patch=(8, 8, 8)))
    return TransferLearning(
        UNet(features=SHAPE, dropout=0.2), task, optimizer, weights=weights, adaptation=list(adaptation)
    )


@pytest.fixture
def fit(make_trainer, tmp_path):
    def run(
        module: TransferLearning, *callbacks: Movement, ckpt_path: Path | None = None, **options: Any
    ) -> lightning.Trainer:
        torch.manual_seed(0)
        settings = {"max_epochs": 1, "enable_progress_bar": False, "default_root_dir": tmp_path / "run"}
        trainer = make_trainer(*callbacks, **{**settings, **options})
        trainer.fit(module, Patches(), ckpt_path=ckpt_path)
        return trainer

    return run


def distance(movement: Movement, name: str) -> float:
    (value,) = [each.distance for each in movement.result if each.stage == name]
    return cast(float, value)


def cka(movement: Movement, name: str) -> float:
    (value,) = [each.cka for each in movement.result if each.stage == name]
    return cast(float, value)


def written(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / "movement.json").read_text(encoding="utf-8"))


def test_a_run_tells_how_far_each_stage_went(weights, fit, tmp_path, capsys):
    module, movement = make(weights, FrozenEncoder()), Movement(voxels=200)
    logger = TensorBoardLogger(tmp_path, "run", "")
    fit(module, movement, logger=logger)
    logger.finalize("success")
    given = torch.load(weights, weights_only=True)
    found = {each.stage: each for each in movement.result}
    assert list(found) == STAGES
    for stage in module.network.stages():
        parameters = stage_parameters(module.network, stage)
        known = {name: each.detach() for name, each in parameters.items() if name in given}
        assert found[stage.name].transferred == sum(each.numel() for each in known.values())
        if known:
            moved = sum((each - given[name]).square().sum().item() for name, each in known.items())
            whole = sum(given[name].square().sum().item() for name in known)
            assert found[stage.name].distance == pytest.approx((moved / whole) ** 0.5, rel=1e-4)
    assert [found[name].distance for name in STAGES[:3]] == [0, 0, 0]
    assert [found[name].cka for name in STAGES[:3]] == pytest.approx([1, 1, 1])
    assert distance(movement, "decoder.0") > 1e-4
    assert cka(movement, "decoder.1") < 0.9999
    assert found["head"].distance is None
    assert [found[name].voxels for name in STAGES] == [200, 128, 16, 128, 200, 200]
    assert [each["stage"] for each in written(tmp_path)["stages"]] == STAGES
    assert written(tmp_path)["notes"] == []
    lines = capsys.readouterr().out.partition("moved away")[2].splitlines()
    assert lines[2].split() == ["encoder.0", "556", "0", "1.000", "200"]
    picture = matplotlib.image.imread(tmp_path / "run" / "movement.png")
    assert picture[..., :3].std() > 0.05
    (image,) = EventAccumulator(str(tmp_path / "run")).Reload().Images("movement")
    assert (image.height, image.width) == picture.shape[:2]


def test_the_features_are_compared_on_the_first_batch(weights, fit):
    module, movement = make(weights), Movement(voxels=10_000)
    before = make(weights)
    fit(module, movement)
    fit(before, max_steps=0)  # filled from the weights, and not trained
    (first, *_) = Patches().train_dataloader()
    kept = []
    for network in (before.network.eval(), module.network.eval()):
        maps = first["image"]
        for level in range(3):
            maps = network.get_submodule(f"encoder.{level}")(maps)
        kept.append(maps)
    one, other = (each.detach().movedim(1, -1).reshape(-1, 8).double() for each in kept)
    # The unbiased estimate, by centring the Gram matrices as Szekely and Rizzo do for distances.
    grams = [u_centred(each @ each.T) for each in (one, other)]
    expected = (grams[0] * grams[1]).sum() / (grams[0].square().sum() * grams[1].square().sum()).sqrt()
    assert movement.result[2].cka == pytest.approx(expected.item(), abs=1e-5)


def u_centred(gram: torch.Tensor) -> torch.Tensor:
    gram, count = gram.clone().fill_diagonal_(0), len(gram)
    rows = gram.sum(0) / (count - 2)
    centred = gram - rows[:, None] - rows[None] + gram.sum() / ((count - 1) * (count - 2))
    return centred.fill_diagonal_(0)


def test_the_training_is_the_same_with_it_and_without(weights, fit):
    with_it, without = make(weights), make(weights)
    fit(with_it, Movement())
    fit(without)
    for one, other in zip(with_it.network.parameters(), without.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_from_scratch_says_nothing(fit, tmp_path, capsys):
    movement = Movement()
    fit(make(None), movement)
    assert movement.result == []
    assert "moved" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "movement.json").exists()


def test_a_resumed_run_measures_from_the_weights_and_says_what_it_cannot(weights, fit, tmp_path):
    fit(make(weights)).save_checkpoint(tmp_path / "half.ckpt")
    module, movement = make(weights), Movement()
    fit(module, movement, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert module.trainer.global_step == 8
    given = torch.load(weights, weights_only=True)
    first = {
        f"encoder.0.{name}": each.detach()
        for name, each in module.network.get_submodule("encoder.0").named_parameters()
    }
    moved = sum((each - given[name]).square().sum().item() for name, each in first.items())
    whole = sum(given[name].square().sum().item() for name in first)
    assert movement.result[0].distance == pytest.approx((moved / whole) ** 0.5, rel=1e-4)
    assert {each.cka for each in movement.result} == {None}
    (note,) = written(tmp_path)["notes"]
    assert "resumed" in note


def test_a_resumed_run_without_the_file_of_its_weights_says_so(weights, fit, tmp_path, capsys):
    fit(make(weights)).save_checkpoint(tmp_path / "half.ckpt")
    Path(weights).unlink()
    fit(make(weights), Movement(), max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert "resumed without the file of its weights" in capsys.readouterr().out


def test_the_head_alone_leaves_every_other_stage_where_it_was(weights, fit):
    movement = Movement()
    fit(make(weights, HeadOnly()), movement)
    assert [each.distance for each in movement.result] == [0, 0, 0, 0, 0, None]
    assert [each.cka for each in movement.result[:-1]] == pytest.approx([1] * 5)
    assert cka(movement, "head") < 0.9999


def test_in_half_precision_it_measures_too(weights, fit):
    movement = Movement()
    fit(make(weights, FrozenEncoder()), movement, precision="bf16-mixed")
    assert [each.cka for each in movement.result[:3]] == pytest.approx([1] * 3)
    assert 0 < cka(movement, "decoder.1") < 0.9999


def test_a_strategy_that_hides_the_stages_is_named(fit, weights, capsys):
    movement = Movement()
    strategy = type("FSDPStrategy", (SingleDeviceStrategy,), {})
    fit(make(weights), movement, strategy=strategy(torch.device("cpu")))
    assert movement.result == []
    assert "not measured: FSDPStrategy" in capsys.readouterr().out


def test_table_and_picture_show_what_was_not_measured():
    result = [StageMovement("encoder.0", "encoder", 10, 0.5, -0.01, 8), StageMovement("head", "head", 0, None, None, 0)]
    lines = movement_table(result)
    assert lines[2].split() == ["head", "0", "-", "-", "-"]
    assert all(line.isascii() for line in lines)
    texts = [text.get_text() for axes in movement_picture(result).axes for text in axes.texts]
    assert {"fresh", "not measured"} <= set(texts)


def test_too_few_voxels_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        Movement(voxels=3)
