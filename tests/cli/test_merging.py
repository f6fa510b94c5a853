"""From finished runs to weights between theirs: what is written, what chose it, and what is refused."""

import csv
import json
import shutil

import pytest
import torch
import yaml

from lightning_atlas.cli import main
from lightning_atlas.cli.judging import Judge
from lightning_atlas.data import ScanDataModule
from lightning_atlas.intake import read_weights
from lightning_atlas.intake.weights import read_file

RECIPE = """\
model:
  class_path: TransferLearning
  init_args:
    network:
      class_path: lightning_atlas.networks.as_network
      init_args:
        network:
          class_path: monai.networks.nets.UNet
          init_args:
            spatial_dims: 3
            in_channels: 1
            out_channels: 2
            channels: [4, 8]
            strides: [2]
            num_res_units: 0
            norm: batch
        encoder: [model.0]
        decoder: [model.1]
        head: [model.2]
        size_multiple: 2
    task:
      class_path: Segmentation
      init_args: {window: {class_path: SlidingWindow, init_args: {patch: [32, 32, 16], overlap: 0}}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 3.0e-2}}
    weights: null
    contract: adopt
data:
  class_path: ScanDataModule
  init_args:
    source: {class_path: SimulatedCohort, init_args: {scan: spine_ct, train: 1, val: 1, test: 1, displacement_mm: 3}}
    classes: {corpus: ["vertebra_corpus*"], arcus: [arcus_vertebrae]}
    preprocess:
      - {class_path: torchio.ToCanonical}
      - {class_path: torchio.Resample, init_args: {target: 6}}
      - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [0, 1], in_min_max: [-200, 800]}}
    patches: {class_path: Patches, init_args: {size: [32, 32, 16], per_epoch: 60}}
    batch_size: 2
trainer: {accelerator: cpu, devices: 1, max_epochs: 1, enable_model_summary: false, enable_progress_bar: false}
"""
LORA = "[{class_path: LoRA, init_args: {rank: 2}}]"
PARTS = '{corpus: ["vertebra_corpus*"], processes: ["*_process*"]}'


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """Returns a function that fits and returns the folder of the run: name, options -> path."""
    root = tmp_path_factory.mktemp("merging")
    (root / "tiny.yaml").write_text(RECIPE, encoding="utf-8")

    def run(name, *options):
        assert main(["fit", str(root / "tiny.yaml"), *options, f"--trainer.default_root_dir={root / name}"]) == 0
        (checkpoint,) = (root / name).rglob("last.ckpt")
        return checkpoint.parents[1]

    return run


@pytest.fixture(scope="module")
def source(fit):
    """A run from scratch."""
    return fit("source")


@pytest.fixture(scope="module")
def lora(fit, source):
    """A run by LoRA from it; one of its classes is new."""
    return fit("lora", start(source), f"--model.adaptation={LORA}", f"--data.classes={PARTS}")


@pytest.fixture(scope="module")
def pair(fit, source):
    """Two full runs from it, at other rates."""
    return [fit(f"at {rate}", start(source), f"--model.optimizer.lr={rate}") for rate in (0.02, 0.03)]


def start(run):
    return f"--model.weights={run / 'checkpoints' / 'last.ckpt'}"


def state_of(run):
    return read_file(run / "checkpoints" / "last.ckpt").tensors


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def merge(*words, output):
    assert main(["merge", *map(str, words), "--output", str(output)]) == 0
    return output


def mean_dice(path):
    return next(float(row["dice"]) for row in rows(path) if row["class"] == "mean")


def test_wise_takes_what_validates_best_and_keeps_the_new_head(lora, tmp_path, capsys, monkeypatch):
    opened = set()
    plain_open = ScanDataModule._open  # pyright: ignore[reportPrivateUsage]

    def note(self, splits, *rest, **options):
        opened.update(splits)
        return plain_open(self, splits, *rest, **options)

    monkeypatch.setattr(ScanDataModule, "_open", note)
    folder = merge(lora, "--method", "wise", output=tmp_path / "wise")
    out = capsys.readouterr().out
    tried = rows(folder / "merging.csv")
    assert [row["candidate"] for row in tried] == [f"{share / 10:.1f}" for share in range(11)]
    (taken,) = (row for row in tried if row["taken"] == "True")
    assert float(taken["dice"]) == max(float(row["dice"]) for row in tried)
    assert mean_dice(folder / "validation_scores.csv") == pytest.approx(float(taken["dice"]), abs=1e-5)
    assert "kept as fine-tuned, since" in out
    assert "model.2" in out.split("kept as fine-tuned")[1].splitlines()[0]
    assert opened == {"val"}  # LoRA held the statistics, so no patch was needed to estimate them


def test_what_is_written_is_the_interpolation(lora, source, tmp_path, monkeypatch):
    scores = iter(float(share == 4) for share in range(11))
    monkeypatch.setattr(Judge, "score", lambda self, state, merged: next(scores))
    folder = merge(lora, "--method", "wise", output=tmp_path / "wise")
    before, tuned, found = (state_of(each) for each in (source, lora, folder))
    assert found.keys() == tuned.keys()
    for name, each in found.items():
        wanted = (
            tuned[name] if name.startswith("model.2.") else torch.lerp(before[name].float(), tuned[name].float(), 0.4)
        )
        torch.testing.assert_close(each.float(), wanted.float())
    assert (
        yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["model"]["init_args"]["adaptation"] is None
    )


@pytest.mark.slow
def test_greedy_is_never_worse_than_its_best_run(pair, tmp_path):
    folder = merge(*pair, "--method", "greedy", output=tmp_path / "greedy")
    alone = [float(row["dice"]) for row in rows(folder / "merging.csv")[:2]]
    own = []
    for run in pair:
        assert main(["validate", str(run)]) == 0
        own.append(mean_dice(run / "validation_scores.csv"))
    assert sorted(alone) == pytest.approx(sorted(own), abs=1e-5)
    assert mean_dice(folder / "validation_scores.csv") >= max(own) - 1e-5


@pytest.mark.slow
def test_a_uniform_soup_is_the_mean_with_statistics_of_its_own(pair, tmp_path, capsys):
    folder = merge(*pair, "--method", "uniform", output=tmp_path / "soup")
    found, *states = (state_of(each) for each in (folder, *pair))
    for name, each in found.items():
        mean = torch.stack([state[name].double() for state in states]).mean(0).to(each.dtype)
        if name.rpartition(".")[2] in ("weight", "bias"):
            torch.testing.assert_close(each, mean)
        elif name.endswith("running_var"):
            assert not torch.allclose(each, mean, rtol=1e-4)
    assert "running statistics of" in capsys.readouterr().out
    assert not (folder / "merging.csv").exists()  # nothing was chosen


@pytest.mark.slow
def test_the_folder_is_exported_and_predicted_with(pair, lora, tmp_path, monkeypatch):
    scores = iter(float(share == 7) for share in range(11))
    monkeypatch.setattr(Judge, "score", lambda self, state, merged: next(scores))
    folder = merge(pair[0], "--method", "wise", output=tmp_path / "wise")
    assert main(["export", str(folder), "--output", str(tmp_path / "export")]) == 0
    source, state = read_weights(str(tmp_path / "export")), state_of(folder)
    assert source.tensors.keys() == state.keys()
    assert all(torch.equal(each, state[name]) for name, each in source.tensors.items())
    card = json.loads((tmp_path / "export" / "atlas.json").read_text(encoding="utf-8"))
    assert card["training"]["merged"]["share_of_fine_tuned"] == 0.7
    assert card["metrics"]["split"] == "validation"
    assert "merged" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert main(["test", str(folder)]) == 0
    assert main(["export", str(lora), "--output", str(tmp_path / "lora")]) == 0
    assert read_weights(str(tmp_path / "lora")).tensors.keys() == state.keys()


def test_mistakes_are_told_in_few_lines(source, lora, tmp_path, capsys):
    ours, lone, twin = str(lora), str(source), str(tmp_path / "twin")
    shutil.copytree(lora, twin)
    for words, told in {
        ("nowhere", "--method", "wise"): "nowhere is no run",
        (ours, twin, "--method", "wise"): "takes one run and found 2",
        (ours, "--method", "greedy"): "several runs and found one",
        (ours, ours, "--method", "uniform"): "named twice",
        (ours, twin, "--method", "gredy"): "invalid choice",
        (ours, "--method", "wise", "--output", str(tmp_path)): "is there already",
        (lone, "--method", "wise"): "started from no weights",
        (lone, ours, "--method", "greedy"): "has the classes corpus, processes",
    }.items():
        capsys.readouterr()
        output = () if "--output" in words else ("--output", str(tmp_path / "x"))
        assert main(["merge", *words, *output]) == 2, words
        error = capsys.readouterr().err
        assert told in error
        assert len([line for line in error.splitlines() if line.startswith(("error", "write"))]) <= 5
    assert not (tmp_path / "x").exists()


def test_runs_that_do_not_belong_together_are_refused(lora, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(lora, other)
    path = other / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    origin = {"origin": "elsewhere.pt", "sha256": "0" * 64}
    for own, told in (({"source": origin}, "started from elsewhere.pt"), ({"source": None}, "started from no weights")):
        torch.save({**content, "lightning_atlas": {**content["lightning_atlas"], **own}}, path)
        assert main(["merge", str(lora), str(other), "--method", "uniform", "--output", str(tmp_path / "x")]) == 2
        assert told in capsys.readouterr().err


def test_a_source_that_changed_is_refused(source, lora, tmp_path, capsys):
    path = source / "checkpoints" / "last.ckpt"
    kept = path.read_bytes()
    content = torch.load(path, weights_only=True)
    torch.save({**content, "epoch": 99}, path)
    try:
        assert main(["merge", str(lora), "--method", "wise", "--output", str(tmp_path / "x")]) == 2
    finally:
        path.write_bytes(kept)
    assert "is not the file that" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
