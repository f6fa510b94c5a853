"""`inspect --rank`: trained weights stand above fresh ones, on cases that are not of the test."""

import json
from pathlib import Path

import pytest
import torch

from lightning_atlas.cli import main
from lightning_atlas.data import module as data_module
from lightning_atlas.networks import UNet

RECIPE = """\
model:
  class_path: TransferLearning
  init_args:
    network: {class_path: UNet, init_args: {features: [16, 32]}}
    task:
      class_path: Segmentation
      init_args: {window: {class_path: SlidingWindow, init_args: {patch: [32, 32, 16]}}}
    allow: [modality, normalization, window]
data:
  class_path: ScanDataModule
  init_args:
    source:
      class_path: SimulatedCohort
      init_args: {scan: abdomen_mr, train: 3, val: 1, test: 1, drawn_planes: [6, 13]}
    classes: {liver: [liver], spleen: [spleen], vertebrae: [vertebrae], muscle: ["autochthon_*"]}
    preprocess:
      - {class_path: torchio.ToCanonical}
      - {class_path: torchio.Resample, init_args: {target: 3}}
      - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [0, 1], percentiles: [0.5, 99.5]}}
    patches: {class_path: Patches, init_args: {size: [32, 32, 16], per_epoch: 1}}
"""


@pytest.fixture
def rank(tmp_path, capsys, monkeypatch):
    """Runs the verb on a recipe: words -> exit code, output, error; `rank.prepared` are the splits that were read."""
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    prepare, prepared = data_module.prepare_all, set()

    def note(cases, *rest):
        prepared.update(case.split for case in cases)
        return prepare(cases, *rest)

    monkeypatch.setattr(data_module, "prepare_all", note)

    def run(*words, config=tmp_path / "recipe.yaml"):
        capsys.readouterr()
        return main(["inspect", "--rank", *map(str, words), "--config", str(config)]), *capsys.readouterr()

    vars(run)["prepared"] = prepared
    return run


def test_trained_weights_stand_above_fresh_ones_and_no_test_case_is_read(rank, tmp_path):
    fresh = UNet(out_channels=29, features=(16, 32, 64, 96))
    torch.save(fresh.state_dict(), tmp_path / "fresh.pt")
    words = (tmp_path / "fresh.pt", "starter_abdomen_ct", "scratch", "--voxels", 40)
    network = "--model.init_args.network.init_args.features=[16,32,64,96]"
    code, out, err = rank(*words, "--json", network)
    assert code == 0, err
    told = json.loads(out)
    best, *others = told["ranked"]
    assert best["weights"] == "starter_abdomen_ct"
    for key in ("probe", "logme"):
        assert best["scores"][key]["place"] == 1
        assert all(other["scores"][key]["high"] < best["scores"][key]["low"] for other in others)
        assert told["not_distinguishable"][key] == [[str(tmp_path / "fresh.pt"), "scratch"]]
    assert best["scores"]["leep"]["place"] == 1  # of the only head that knows its classes
    assert [other["scores"]["leep"] for other in others] == [None, None]
    assert (best["encoder_share"], best["contract_stated"]) == (1.0, True)
    assert {each["key"] for each in best["differences"]} == {"modality", "normalization", "window"}
    assert all(each["allowed"] for each in best["differences"])
    assert (told["cases"], told["windows"]) == ({"train": 3, "val": 1}, 16)
    assert told["units"] == "4 simulated subjects, made of one scan"
    assert best["cost"]["voxels_seen"] == 16 * 32 * 32 * 16
    assert best["cost"]["seconds_features"] > 0
    assert rank.prepared == {"train", "val"}


def test_the_report_in_words_on_scans_prepared_as_the_weights_expect(rank, tmp_path):
    (tmp_path / "coarse.yaml").write_text(RECIPE.replace("target: 3", "target: 4"), encoding="utf-8")
    words = ("starter_abdomen_ct", "scratch", "--voxels", 12, "--cases", 1, "--model.init_args.contract=adopt")
    code, out, err = rank(*words, config=tmp_path / "coarse.yaml")
    assert code == 0, err
    for part in (
        "4 windows of 1 of train (never of test); intervals of 95 % over 2 groups of neighbouring planes of 1 scan",
        "spacing_mm: the weights expect (3, 3, 3), the data give (4, 4, 4) (adopted)",
        "modality: the weights expect CT, the data give MR (allowed)",
        "scratch: UNet as it is initialised",
        "caution: the evidence for such scores is thin",
        "4 windows",
        "up to 65,536 voxels through each network",
    ):
        assert part in out, part
    assert "not distinguishable by" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["starter_abdomen_ct"], "two weights at least"),
        (["starter_abdomen_ct", "no_such_weights"], "no_such_weights is neither a file, a folder nor the name"),
        (["starter_abdomen_ct", "scratch", "--voxels", "0"], "both count, from 1"),
        (["starter_abdomen_ct", "scratch", "--voxel", "9"], "did you mean --voxels?"),
        (["other.pt", "scratch"], "of the encoder of UNet"),
    ],
)
def test_bad_input_is_told_in_a_line(rank, tmp_path, words, expected):
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    code, _, err = rank(*words)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_a_recipe_is_needed(capsys):
    assert main(["inspect", "--rank", "a", "b"]) == 2
    assert "--config" in capsys.readouterr().err


def test_a_recipe_without_labelled_training_cases_is_refused(rank, tmp_path):
    only_test = RECIPE.replace("train: 3, val: 1, test: 1", "train: 0, val: 0, test: 1")
    (tmp_path / "test.yaml").write_text(only_test, encoding="utf-8")
    code, _, err = rank("starter_abdomen_ct", "scratch", config=tmp_path / "test.yaml")
    assert code == 2
    assert "test cases are not looked at" in err
    assert rank.prepared == set()


def test_a_task_of_whole_scans_is_refused(rank):
    code, _, err = rank("starter_abdomen_ct", "scratch", "--model.init_args.task=Classification")
    assert code == 2
    assert "ranked voxel by voxel, and Classification is of whole scans" in err


def test_a_task_of_boxes_is_refused_as_such(rank):
    model = ("--model.init_args.task=Detection", "--model.init_args.network.init_args.features=[16,32,64]")
    code, _, err = rank("starter_abdomen_ct", "scratch", *model, "--data.init_args.boxes=LabelBoxes")
    assert code == 2
    assert "ranked voxel by voxel, and Detection finds boxes" in err


def test_a_run_is_ranked_by_its_own_network(rank, tmp_path):
    """Its recipe names the network; the checkpoint does not."""
    network = UNet(out_channels=5, features=(4, 8, 8))
    run = Path(tmp_path / "run")
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").write_text(
        "model: {class_path: TransferLearning, init_args: {network: "
        "{class_path: lightning_atlas.networks.UNet, init_args: {features: [4, 8, 8]}}}}\n",
        encoding="utf-8",
    )
    state = {f"network.{name}": each for name, each in network.state_dict().items()}
    contract = {"classes": ["liver", "spleen", "vertebrae", "muscle"]}
    torch.save({"state_dict": state, "lightning_atlas": {"contract": contract}}, run / "checkpoints" / "last.ckpt")
    code, out, err = rank(run, "scratch", "--voxels", 12, "--cases", 3, "--json")
    assert code == 0, err
    row = next(row for row in json.loads(out)["ranked"] if row["weights"] == str(run))
    assert row["encoder_share"] == 1.0
    assert row["scores"]["leep"] is not None
