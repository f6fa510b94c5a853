"""Several sets of weights in one file: the usual one is taken, the others are told, and any can be chosen."""

from argparse import Namespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from lightning_atlas.contract import Contract
from lightning_atlas.intake.loading import load_weights, read_weights
from lightning_atlas.intake.nests import other_sets, state_dict, state_dict_at, twins


def sets(make_toy, *seeds, prefix=""):
    return [{f"{prefix}{key}": each for key, each in make_toy(seed).state_dict().items()} for seed in seeds]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "callbacks.EMA{'decay': 0.99}.average"])
def test_an_average_beside_the_weights_is_told_and_taken_when_chosen(name, make_toy, tmp_path):
    plain, average = sets(make_toy, 1, 2)
    content = {"state_dict": plain, "epoch": 3}
    inner, last = content, name
    if name.startswith("callbacks"):
        last = "average"
        inner = content.setdefault("callbacks", {}).setdefault("EMA{'decay': 0.99}", {})
    inner[last] = {f"module.{key}": each for key, each in average.items()} | {"n_averaged": torch.tensor(7)}
    torch.save(content, tmp_path / "a.ckpt")
    source = read_weights(str(tmp_path / "a.ckpt"))
    assert equal(source.tensors, plain)
    assert source.notes == (f"a.ckpt has such weights also under {name}; to take those: {tmp_path / 'a.ckpt'}#{name}",)
    network = make_toy(3)
    report = load_weights(network, source)
    assert source.notes[0] in str(report)
    chosen = read_weights(f"{tmp_path / 'a.ckpt'}#{name}")
    assert chosen.origin == f"{tmp_path / 'a.ckpt'}#{name}"
    report = load_weights(network, chosen)
    assert equal(dict(network.state_dict()), average)
    assert chosen.origin in str(report)
    assert [each.name for each in report.left_over] == ["n_averaged"]


def test_what_lightning_averages_is_the_usual_one_and_the_weights_themselves_can_be_chosen(tmp_path):
    class Line(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

        def training_step(self, batch, batch_idx):
            return self.layers(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, average = Line(), EMAWeightAveraging(decay=0.5)
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=4, callbacks=[average], default_root_dir=tmp_path, **settings)
    trainer.fit(module, DataLoader(list(torch.randn(8, 2)), batch_size=2))  # pyright: ignore[reportArgumentType]
    path = tmp_path / "line.ckpt"
    content = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=False)
    kept = {key: content[key] for key in ("state_dict", "current_model_state", "averaging_state")}
    assert not equal(kept["state_dict"], kept["current_model_state"])
    torch.save(kept, path)
    assert equal(read_weights(str(path)).tensors, kept["state_dict"])
    assert "line.ckpt#current_model_state" in read_weights(str(path)).notes[0]
    assert equal(read_weights(f"{path}#current_model_state").tensors, kept["current_model_state"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_sets_in_one_state_dict_are_told_apart_by_how_their_names_begin(suffix, make_toy, tmp_path):
    (student,), (teacher,) = sets(make_toy, 1, prefix="student."), sets(make_toy, 2, prefix="teacher.")
    path = tmp_path / f"a{suffix}"
    save_file(student | teacher, path) if suffix == ".safetensors" else torch.save(student | teacher, path)
    assert [note.rpartition("#")[2] for note in read_weights(str(path)).notes] == ["student", "teacher"]
    network = make_toy(3)
    load_weights(network, read_weights(f"{path}#teacher"))
    assert equal(dict(network.state_dict()), dict(make_toy(2).state_dict()))
    assert [note.rpartition("#")[2] for note in read_weights(f"{path}#teacher").notes] == ["student"]


def test_what_is_no_further_set_is_not_told(make_toy):
    (plain,) = sets(make_toy, 1)
    moments = {number: {"exp_avg": each} for number, each in enumerate(plain.values())}
    content = {"state_dict": plain, "optimizer_states": {"state": moments}, "best": {"dice": torch.tensor(0.5)}}
    assert equal(state_dict(content), plain)
    assert other_sets(content, plain) == twins(plain) == []


def test_blocks_of_equal_shapes_are_no_further_sets():
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))).state_dict()
    assert twins(layers) == []
    assert twins({f"online.{key}": each for key, each in layers.items()}) == []


def test_our_own_checkpoint_keeps_the_weights_themselves_beside_their_average(make_toy, tmp_path):
    (average,), (raw,) = sets(make_toy, 1, prefix="network."), sets(make_toy, 2)
    content = {"state_dict": average, "raw_weights": raw, "lightning_atlas": {"contract": Contract().to_dict()}}
    torch.save(content, tmp_path / "last.ckpt")
    path = tmp_path / "last.ckpt"
    assert equal(read_weights(str(path)).tensors, dict(make_toy(1).state_dict()))
    assert read_weights(str(path)).notes[0].endswith("#raw_weights")
    chosen = read_weights(f"{path}#raw_weights")
    assert equal(chosen.tensors, raw)
    assert chosen.contract == Contract()


def test_a_nest_that_is_not_there_is_refused_with_those_that_are(make_toy, tmp_path):
    plain, average = sets(make_toy, 1, 2)
    torch.save({"state_dict": plain, "ema": average}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: there are no tensors under 'emma'; other sets of weights: ema"):
        read_weights(f"{tmp_path / 'a.pt'}#emma")
    assert equal(
        state_dict_at({"state_dict": plain}, "encoder"),
        {key.removeprefix("encoder."): each for key, each in plain.items() if key.startswith("encoder.")},
    )
    torch.save(plain, tmp_path / "run#2.pt")
    assert equal(read_weights(str(tmp_path / "run#2.pt")).tensors, plain)


def test_the_arguments_of_a_script_beside_the_tensors_are_read_past(make_toy, tmp_path):
    student, teacher = sets(make_toy, 1, 2)
    torch.save({"student": student, "teacher": teacher, "args": Namespace(lr=0.1, names=["a"])}, tmp_path / "a.pth")
    assert equal(read_weights(f"{tmp_path / 'a.pth'}#student").tensors, student)
    assert equal(read_weights(f"{tmp_path / 'a.pth'}").tensors, teacher)
