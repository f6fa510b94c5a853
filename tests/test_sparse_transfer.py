"""The system of Humpire-Mamani et al. from files to files: union, targets, arms, and their weights as published."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from recipe_headers import commands, header, loops, parses, recipe
from torch.nn import functional as F

from lightning_atlas.cli import main
from lightning_atlas.contract import Contract
from lightning_atlas.data import ScanLayout
from lightning_atlas.data.labels.classes import match_classes
from lightning_atlas.intake import zoo
from lightning_atlas.intake.weights import read_file, write_weights
from lightning_atlas.networks import ValidUNet

SIDE, SPACING_MM = 24, 1.5
SMALL = [
    "--data.patches.size=[32,32,32]",
    "--data.patches.per_epoch=2",
    "--data.batch_size=1",
    "--data.num_workers=0",
    "--model.task.window.patch=[32,32,32]",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_steps=2",
    "--trainer.max_epochs=1",
]
LOBES = [f"lung_{lobe}_lobe_left" for lobe in ("upper", "lower")]
LOBES += [f"lung_{lobe}_lobe_right" for lobe in ("upper", "middle", "lower")]
REST = ["urinary_bladder", "heart", "iliopsoas_left", "iliopsoas_right", "spinal_cord", "sternum", "trachea"]


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])), path)


def scan(path, seed):
    volume(path, np.random.default_rng(seed).normal(0, 300, (SIDE,) * 3).astype(np.int16))


def slabs(values):
    """Each value in a slab of its own along j, which stays two voxels from the faces."""
    edges = np.linspace(2, SIDE - 2, len(values) + 1).round().astype(int)
    label = np.zeros((SIDE,) * 3, np.uint8)
    for value, low, high in zip(values, edges[:-1], edges[1:], strict=True):
        label[2:-2, low : max(high, low + 1), 2:-2] = value
    return label


def pairs(root, scans, labels, values):
    for number in range(1, 6):
        scan(root / f"{scans.format(number)}.nii.gz", number)
        volume(root / f"{labels.format(number)}.nii.gz", slabs(values))


def totalsegmentator(root, names, image="ct"):
    for number in range(5):
        folder = root / f"s{number:04}"
        scan(folder / f"{image}.nii.gz", number)
        label = slabs(range(1, len(names) + 1))
        for value, name in enumerate(names, start=1):
            volume(folder / "segmentations" / f"{name}.nii.gz", (label == value).astype(np.uint8))


def saros(root):
    for number in range(2):
        folder = root / f"case_{number:03}"
        scan(folder / "image.nii.gz", number)
        label = slabs(range(1, 14))
        label[:, :, np.arange(SIDE) % 5 != 0] = 255
        volume(folder / "body-regions.nii.gz", label)


def union(root):
    pairs(root / "btcv", "img/img{:04}", "label/label{:04}", range(1, 14))
    pairs(root / "marss", "images/{:04}", "labels/{:04}", (1, 3, 4, 5, 6, 7, 11, 14))
    pairs(root / "kits19", "case_{:05}/imaging", "case_{:05}/segmentation", (1, 2))
    pairs(root / "lits", "volume-{}", "segmentation-{}", (1, 2))
    totalsegmentator(root / "totalsegmentator", [*LOBES, *REST])
    saros(root / "saros")


MAKERS = {
    "esophagus_ct": lambda root: pairs(root, "img/img{:04}", "label/label{:04}", range(1, 14)),
    "vertebrae_ct": lambda root: pairs(root, "verse{:03}", "verse{:03}_seg", range(8, 26)),
    "lung_lobes_ct": lambda root: totalsegmentator(root, LOBES),
    "vertebrae_mr": lambda root: totalsegmentator(root, ["vertebrae"], image="mri"),
}


def fit(*words, folder):
    recipes = [word for word in words if not word.startswith("-")]
    options = [word for word in words if word.startswith("-")]
    code = main(["fit", *recipes, "machine/smoke_valid", *options, *SMALL, f"--trainer.default_root_dir={folder}"])
    runs = sorted(each.parent for each in folder.rglob("recipe.yaml"))
    return code, runs[-1] if runs else None


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_target_runs_on_files_in_the_layout_that_it_names(name, tmp_path):
    MAKERS[name](tmp_path / "PATH")
    words = [f"target/{name}", f"--data.source.path={tmp_path / 'PATH'}", "--data.splits.shots=2"]
    code, run = fit(*words, folder=tmp_path / "out")
    assert code == 0
    assert run is not None
    complete = yaml.safe_load(recipe(f"target/{name}").read_text(encoding="utf-8"))
    scored = [line.partition(",")[0] for line in (run / "scores.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert {*complete["data"]["init_args"]["classes"], "mean"} <= set(scored)


@pytest.mark.slow
def test_the_base_trains_on_a_union_whose_datasets_have_drawn_different_things(tmp_path, monkeypatch):
    union(tmp_path / "PATH")
    monkeypatch.chdir(tmp_path)
    code, run = fit("pretrain/sparse_base", "--data.splits.test_share=0.2", folder=tmp_path / "out")
    assert code == 0
    assert run is not None
    weights = read_file(run / "checkpoints" / "last.ckpt")
    assert weights.contract is not None
    assert len(weights.contract.classes) == 22
    assert (weights.contract.orientation, weights.contract.window) == ("LPS", (-500.0, 400.0))


def test_every_structure_of_the_base_is_drawn_somewhere_and_no_dataset_has_all(tmp_path):
    union(tmp_path)
    complete = yaml.safe_load(recipe("pretrain/sparse_base").read_text(encoding="utf-8"))
    data = complete["data"]["init_args"]
    cases = {
        name: ScanLayout(**source["init_args"] | {"path": tmp_path / name}).cases()[0]
        for name, source in data["source"]["init_args"]["datasets"].items()
    }
    names = {dataset: (case.names, case.vocabulary) for dataset, case in cases.items()}
    classes = match_classes(names.values(), data["classes"])
    undrawn = {dataset: set(classes.undecided(*each)) for dataset, each in names.items()}
    assert len(classes.names) == 22
    assert set.intersection(*undrawn.values()) == set()
    assert all(undrawn.values()), undrawn
    assert undrawn["lits"] == {*classes.names} - {"liver"}


ALIKE = ("vertebrae_ct", "lung_lobes_ct", "vertebrae_mr")
"""Targets whose headers have the commands of the first one, with its name."""


@pytest.mark.parametrize(
    "place",
    [
        "pretrain/sparse_base",
        *(pytest.param(f"target/{name}", marks=pytest.mark.slow if name in ALIKE else ()) for name in MAKERS),
    ],
)
def test_a_header_has_commands_that_parse(place):
    found = commands(recipe(place))
    assert place in found[0]
    assert len(found) >= 2
    assert all(parses(words) for words in found)


@pytest.mark.parametrize("name", MAKERS)
def test_the_sweep_of_a_header_goes_through_the_arms_at_all_sizes(name):
    turns = loops(header(recipe(f"target/{name}")))
    assert turns["arm"] == ["full", "last_stages", "last_stages_first"]
    assert all(recipe(f"method/{arm}").is_file() for arm in turns["arm"])
    assert turns["shots"][-1] == "null"
    sizes = [int(each) for each in turns["shots"][:-1]]
    assert sizes == sorted(set(sizes))
    every = [words for words in commands(recipe(f"target/{name}")) if "--data.splits.shots" in words]
    assert [words[words.index("--trainer.default_root_dir") + 1] for words in every] == [
        "sweep/scratch/1",
        "sweep/full/1",
    ]


CONTRACT = Contract(
    classes=("liver", "esophagus", "trachea"),
    modality="CT",
    orientation="LPS",
    normalization="window",
    window=(-500.0, 400.0),
    range=(-500.0, 400.0),
)


def test_fine_tuning_moves_the_last_convolution_and_the_head_which_goes_by_name(tmp_path, capsys):
    MAKERS["esophagus_ct"](tmp_path / "PATH")
    torch.manual_seed(2)
    base = ValidUNet(features=(2, 4), out_channels=4)
    write_weights(tmp_path / "base.safetensors", base, CONTRACT, {"card": "a test"})
    words = [f"--data.source.path={tmp_path / 'PATH'}", f"--model.weights={tmp_path / 'base.safetensors'}"]
    code, run = fit("target/esophagus_ct", "method/last_stages", *words, folder=tmp_path / "out")
    assert code == 0, capsys.readouterr().err
    assert run is not None
    found, before = read_file(run / "checkpoints" / "last.ckpt").tensors, base.state_dict()
    moved = {name for name, each in found.items() if name[:4] != "head" and not torch.equal(each, before[name])}
    assert moved == {"decoder.0.1.weight", "decoder.0.1.bias"}
    rows = before["head.weight"][[0, 2]]  # background and esophagus
    assert found["head.weight"].shape == rows.shape
    assert 0 < (found["head.weight"] - rows).abs().max() < 1e-4


def published(tmp_path, monkeypatch):
    """A small network in the published layout: names of Keras, axes z, y, x, the background last."""
    spec = {"class_path": "lightning_atlas.networks.ValidUNet", "init_args": {"out_channels": 23, "features": [2, 4]}}
    task = {"window": {"patch": [32, 32, 32], "overlap": 0.0}, "threshold": 0.5}
    entry = replace(zoo.find("humpire_valid_unet"), network=spec, task=task)
    monkeypatch.setattr(zoo, "entries", lambda: {entry.name: entry})
    torch.manual_seed(4)
    network = ValidUNet(features=(2, 4), out_channels=23)
    with torch.no_grad():
        noise = torch.randn(1, 1, 48, 48, 48) * 300
        network.head.weight *= 4 / network(noise).std()  # probabilities on both sides of one half
    names = {"encoder.0.0": "", "encoder.0.1": "_1", "encoder.1.0": "_2", "encoder.1.1": "_3"}
    names |= {"decoder.0.0": "_8", "decoder.0.1": "_9"}
    file = {}
    for name, tensor in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        tensor = tensor.roll(-1, 0) if layer == "head" else tensor
        theirs = "output_segm" if layer == "head" else f"conv3d{names[layer]}"
        file[f"{theirs}.{kind.replace('weight', 'kernel')}"] = (
            tensor.permute(0, 1, 4, 3, 2) if tensor.ndim == 5 else tensor
        )
    torch.save(file, tmp_path / "keras.pt")
    return network


def test_published_weights_ask_for_the_voxel_size_and_segment_as_they_were_meant_to(tmp_path, monkeypatch, capsys):
    network = published(tmp_path, monkeypatch)
    scan(tmp_path / "scans" / "a.nii.gz", 7)
    places = ["--input", str(tmp_path / "scans"), "--output", str(tmp_path / "out"), "--trainer.accelerator=cpu"]
    words = ["predict", "--weights", f"humpire_valid_unet={tmp_path / 'keras.pt'}", *places]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "the voxel size that these weights were trained on is not known" in told
    assert "--data.preprocess" in told
    assert main([*words, "--data.preprocess=[]"]) == 0
    image = torch.from_numpy(np.asarray(nib.Nifti1Image.from_filename(tmp_path / "scans/a.nii.gz").dataobj)).float()
    image = image.clamp(-500, 400)[None, None]
    context = network.context
    with torch.no_grad():
        padded = F.pad(image, [context] * 6, value=image.min().item())
        likely = network(padded).softmax(1)[0]
    expected = torch.where(likely[1:].amax(0) > 0.5, likely[1:].argmax(0) + 1, 0)
    found = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "out" / "a.nii.gz").dataobj)
    assert (found == expected.numpy()).mean() > 0.999
    assert 0.02 < (found > 0).mean() < 0.98
