from dataclasses import replace
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchio.transforms import Clamp, CropOrPad, RandomNoise, Resample, RescaleIntensity, ToCanonical

from lightning_atlas.contract import PREPROCESSED, SEEN, Contract
from lightning_atlas.data import Patches, ScanDataModule, SimulatedCohort
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.intake.weights import write_weights
from lightning_atlas.modules import TransferLearning
from lightning_atlas.modules.agreement import check_agreement, check_prepared
from lightning_atlas.networks import UNet
from lightning_atlas.tasks import Segmentation

WEIGHTS = Contract(
    classes=("disc", "cord"),
    modality="CT",
    orientation="LPS",
    spacing_mm=(4.0, 4.0, 4.0),
    normalization="window",
    window=(-100.0, 900.0),
    range=(-1.0, 1.0),
)
OWN = [ToCanonical(), Resample(3), CropOrPad((20, 20, 20)), RescaleIntensity((0, 1), percentiles=(1, 99))]


@pytest.fixture(autouse=True)
def store(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_CACHE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def weights(tmp_path):
    network = UNet(features=(2, 4), out_channels=3)
    write_weights(tmp_path / "weights.safetensors", network, WEIGHTS, {})
    return tmp_path / "weights.safetensors"


def trainer(**settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return lightning.Trainer(**{**quiet, "max_epochs": 1, "enable_checkpointing": False, **settings})


def module(path, **settings: Any) -> Any:
    lightning.seed_everything(1)
    task = Segmentation(SlidingWindow(patch=(8, 8, 8), overlap=0.0))
    chosen = {"contract": "adopt", "weights": None if path is None else str(path), **settings}
    return TransferLearning(UNet(features=(2, 4)), task, partial(torch.optim.AdamW, lr=1e-2), **chosen)


def data(scan: Any = "spine_ct", preprocess=OWN, **changes: Any) -> Any:
    return ScanDataModule(
        SimulatedCohort(scan, 1, 1, 1),
        preprocess=list(preprocess),
        augment=[RandomNoise(std=0.05)],
        patches=Patches((8, 8, 8), per_epoch=2),
        **changes,
    )


def preprocessing(contract):
    return {key: getattr(contract, key) for key in PREPROCESSED}


def test_adopting_prepares_what_the_weights_expect_and_nothing_else(weights, capsys):
    run, scans = module(weights), data()
    trainer().fit(run, scans)
    assert preprocessing(scans.contract) == preprocessing(run.contract) == preprocessing(WEIGHTS)
    assert [type(each).__name__ for each in scans.preprocess][2:3] == ["CropOrPad"]
    assert scans.whole("train", 0)["spacing_mm"][0].tolist() == pytest.approx([4, 4, 4])
    assert scans.whole("train", 0)["image"].shape[2:] == (20, 20, 20)
    assert (scans.patches.size, scans.batch_size, len(scans.augment)) == ((8, 8, 8), 2, 1)
    printed = capsys.readouterr().out
    assert printed.count("prepared in") == 1
    assert "2 prepared in" in printed
    assert "adopted: spacing_mm (4, 4, 4) instead of (3, 3, 3)" in printed
    assert "adopted: kept: CropOrPad" in printed


def test_a_data_module_may_come_as_an_argument_of_its_own(weights):
    scans = data()
    trainer().fit(module(weights), datamodule=scans)
    assert scans.contract.spacing_mm == WEIGHTS.spacing_mm


def test_matching_stops_with_each_difference_and_what_to_type(weights):
    with pytest.raises(ValueError, match="expect orientation LPS, not RAS; spacing_mm") as caught:
        trainer().fit(module(weights, contract="match"), data())
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "range (-1, 1), not (0, 1)" in lines[0]
    assert lines[1].startswith("never allowed to differ: range, since the network would see other numbers")
    assert "contract: adopt" in lines[2]
    assert lines[3].endswith("allow: [orientation, spacing_mm, normalization, window]")


def test_ct_weights_on_mr_need_three_keys_and_keep_their_range(weights, capsys):
    with pytest.raises(ValueError, match=r"allow: \[modality, normalization, window\]"):
        trainer().fit(module(weights), data("spine_mr"))
    scans = data("spine_mr")
    trainer().fit(module(weights, allow=["modality", "normalization", "window"]), scans)
    assert (scans.contract.normalization, scans.contract.window) == ("percentiles above air", (0.5, 99.5))
    assert scans.contract.range == WEIGHTS.range
    assert "allowed: window: the weights expect (-100, 900), the data give (0.5, 99.5)" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_checkpoint_is_scored_on_what_it_was_trained_on_without_the_weights(verb, weights, tmp_path, capsys):
    run, scans = module(weights), data()
    fit = trainer()
    fit.fit(run, scans)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    weights.unlink()
    capsys.readouterr()
    again, fresh = module(weights), data()
    getattr(trainer(), verb)(again, fresh, ckpt_path=tmp_path / "last.ckpt")
    assert preprocessing(fresh.contract) == preprocessing(again.contract) == preprocessing(WEIGHTS)
    assert capsys.readouterr().out.count("prepared in") == 1  # the recipe's own preprocessing is never made
    assert again.contract.seen_extent_mm == run.contract.seen_extent_mm
    if verb == "validate":
        assert again.results["val"].mean == pytest.approx(run.results["val"].mean, nan_ok=True)


def test_a_resumed_run_prepares_what_it_was_trained_on_whether_the_weights_are_there_or_not(weights, tmp_path):
    every = ModelCheckpoint(tmp_path, "first", enable_version_counter=False)
    whole = module(weights)
    trainer(max_epochs=2).fit(whole, data())
    trainer(callbacks=[every], enable_checkpointing=True).fit(module(weights), data())
    for gone in (False, True):
        if gone:
            weights.unlink()
        rest, scans = module(weights), data()
        trainer(max_epochs=2).fit(rest, scans, ckpt_path=tmp_path / "first.ckpt", weights_only=False)
        torch.testing.assert_close(rest.network.state_dict(), whole.network.state_dict())
        assert scans.contract.spacing_mm == WEIGHTS.spacing_mm


def test_a_loaded_module_has_new_data_prepared_as_its_checkpoint_expects(weights, tmp_path):
    fit = trainer()
    fit.fit(module(weights), data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    parts = {"network": UNet(features=(2, 4)), "task": Segmentation(SlidingWindow(patch=(8, 8, 8), overlap=0.0))}
    loaded: Any = TransferLearning.load_from_checkpoint(tmp_path / "last.ckpt", **parts, contract="adopt")
    scans = data()
    trainer().predict(loaded, scans)
    assert scans.contract.spacing_mm == WEIGHTS.spacing_mm
    assert loaded.contract.seen_spacing_mm


def test_other_scans_than_a_checkpoint_expects_are_refused_where_nothing_is_adopted(tmp_path):
    fit = trainer()
    fit.fit(module(None, contract="match"), data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    other = data(preprocess=[ToCanonical(), Resample(2), RescaleIntensity((0, 1), percentiles=(1, 99))])
    with pytest.raises(ValueError, match=r"checkpoint expects spacing_mm \(3, 3, 3\), not \(2, 2, 2\)"):
        trainer().test(module(None, contract="match"), other, ckpt_path=tmp_path / "last.ckpt")
    allowed = module(None, contract="match", allow=["spacing_mm"])
    trainer().test(allowed, other, ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_a_run_from_scratch_adopts_nothing_and_says_what_it_saw(tmp_path):
    run, scans = module(None), data()
    fit = trainer()
    fit.fit(run, scans)
    assert scans.contract.spacing_mm == (3.0, 3.0, 3.0)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["lightning_atlas"]["contract"]
    assert all(kept[key] for key in SEEN)
    assert Contract.from_dict(kept) == run.contract


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (None, "does not say it"),
        (replace(WEIGHTS, normalization="histogram"), "normalization histogram"),
    ],
)
def test_weights_that_cannot_be_adopted_stop_the_fit_before_anything_is_prepared(weights, problem, tmp_path, capsys):
    path = tmp_path / "bare.pt"
    network = UNet(features=(2, 4))
    torch.save(network.state_dict(), path)
    if weights is not None:
        path = tmp_path / "odd.safetensors"
        write_weights(path, network, weights, {})
    with pytest.raises(ValueError, match=f"{problem}.*contract: match"):
        trainer().fit(module(path), data())
    assert "prepared in" not in capsys.readouterr().out


def test_what_weights_do_not_state_stays_and_is_told(tmp_path, capsys):
    path = tmp_path / "half.safetensors"
    half = Contract(classes=("disc",), modality="CT", spacing_mm=(4.0, 4.0, 4.0))
    write_weights(path, UNet(features=(2, 4), out_channels=2), half, {})
    scans = data()
    trainer().fit(module(path), scans)
    assert preprocessing(scans.contract) == preprocessing(data().contract) | {"spacing_mm": (4.0, 4.0, 4.0)}
    told = "adopted: the weights do not state orientation, normalization: as the recipe has it; write what you know"
    assert f"{told} of it into data.init_args.preprocess" in capsys.readouterr().out


def test_a_data_module_that_cannot_adopt_is_told(weights, toy_data):
    with pytest.raises(ValueError, match="ScanDataModule does; found ToyData"):
        trainer().fit(module(weights), toy_data())


@pytest.mark.parametrize("key", ["range", "axis_order", "colour"])
def test_a_key_that_can_never_be_allowed_is_refused_when_the_module_is_made(key):
    with pytest.raises(ValueError, match=f"allow: .*{key}.*what can be allowed: modality"):
        module(None, allow=[key])


def test_what_can_never_be_meant_stops_even_with_all_the_rest_allowed():
    two, meant = replace(WEIGHTS, channels=("T1", "T2")), ["orientation", "channels"]
    given = replace(WEIGHTS, channels=("T1",), axis_order="kji", orientation="RAS")
    with pytest.raises(ValueError, match="since the first layer takes 2; axis_order, since the kernels") as caught:
        check_agreement(two, given, meant, "w")
    assert "allow:" not in str(caught.value)
    assert len(check_agreement(WEIGHTS, replace(given, axis_order="ijk"), meant, "w")) == 2
    check_prepared(WEIGHTS, replace(WEIGHTS, modality="MR", channels=("T1",)), [])


def test_channels_that_both_sides_name_are_to_be_taken_by_name():
    given = replace(WEIGHTS, channels=("T1", "T2"))
    for names, told in {("T2", "T1"): "channels by their names", ("A", "B"): "other channels"}.items():
        with pytest.raises(ValueError, match=f"take {told}: model.init_args.adapters"):
            check_agreement(given, replace(given, channels=names), [], "w")


def test_weights_for_one_channel_serve_several_where_that_is_allowed(weights, toy_data, toy_batch):
    """An image whose channels are all the same gives what its one channel gave."""
    lightning.seed_everything(1)
    stands = partial(torch.optim.AdamW, lr=0.0)
    task = Segmentation(SlidingWindow(patch=(8, 8, 8), overlap=0.0))

    class Repeated(toy_data):
        """As many channels as the contract says, all the same."""

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "image": batch["image"].repeat(1, len(self.contract.channels), 1, 1, 1)}

    found = []
    for names in (("T1",), ("T1", "T2")):
        scans = Repeated(replace(WEIGHTS, channels=names, classes=("liver", "spleen")))
        settings: Any = {"optimizer": stands, "weights": str(weights), "required_share": 1.0, "allow": ["channels"]}
        run: Any = TransferLearning(UNet(features=(2, 4), in_channels=len(names)), task, **settings)
        trainer(max_steps=1).fit(run, scans)
        found.append(run.network.encoder[0](toy_batch(0)["image"].repeat(1, len(names), 1, 1, 1)))
    torch.testing.assert_close(found[1], found[0])
    with pytest.raises(ValueError, match=r"allow: \[channels\]"):
        trainer().fit(module(weights, contract="match"), scans)


def test_errors_have_at_most_five_lines_that_a_terminal_shows():
    with pytest.raises(ValueError, match="expect") as caught:
        check_agreement(WEIGHTS, Contract(channels=("T1", "T2"), axis_order="kji"), [], "x" * 60)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 5
    assert max(map(len, lines)) < 400


def test_transforms_that_agree_already_are_not_touched(weights):
    same = [CropOrPad((20, 20, 20)), Clamp(-100, 900), RescaleIntensity((-1, 1), in_min_max=(-100, 900))]
    scans = data(preprocess=same)
    trainer().fit(module(weights), scans)
    assert scans.preprocess[2:] == same


def test_channels_in_another_order_than_a_checkpoint_reads_are_refused():
    kept = replace(WEIGHTS, channels=("T1", "T2"))
    check_prepared(kept, kept, [])
    with pytest.raises(ValueError, match="reads the channels T1, T2, and the data have them as T2, T1"):
        check_prepared(kept, replace(kept, channels=("T2", "T1")), ["channels"])
