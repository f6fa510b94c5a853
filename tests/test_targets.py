"""Recipes of published datasets, each run for one step on files made as that dataset lies on disk."""

import csv
import json
import re
from fnmatch import fnmatch

import numpy as np
import pytest
import yaml
from dataset_files import SIDE, bcv, case_folder, deeplesion, flare, imagecas, jhh, lidc, lits, saros, totalsegmentator
from recipe_headers import commands, parses

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder
from lightning_atlas.contract import Contract
from lightning_atlas.data import ScanLayout, Splits
from lightning_atlas.data.labels.vocabulary import load_vocabulary
from lightning_atlas.data.store.reading import read_case
from lightning_atlas.intake.exported import write_export
from lightning_atlas.intake.weights import write_weights
from lightning_atlas.networks import GenesisUNet, SegResNet

TARGETS = recipes_folder() / "target"
SMALL = [
    "--data.patches.size=[16,16,16]",
    "--data.patches.per_epoch=1",
    "--data.batch_size=1",
    "--data.num_workers=0",
    "--model.task.window.patch=[24,24,24]",
    "--model.task.window.overlap=0",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_steps=1",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.num_sanity_val_steps=0",
]
NARROW = {
    "GenesisUNet": "--model.network.init_filters=2",
    "SegResNet": "--model.network.init_filters=8",
    "ResUNet": "--model.network.backbone.features=4",
    "LidcFCN": "--model.network.backbone.features=4",
    "R3D": "--model.network.features=4",
    "SliceDetector": "--model.network.features=8",
}
SUPREM = Contract(
    classes=("pancreas", "pancreas_tumor", "liver", "kidney_left", "kidney_right", "lung_left"),
    modality="CT",
    orientation="RAS",
    spacing_mm=(1.5, 1.5, 1.5),
    normalization="window",
    window=(-175.0, 250.0),
    range=(0.0, 1.0),
    overlapping=True,
)


MAKERS = {
    **{
        f"totalsegmentator_{group}": (lambda root, group=group: totalsegmentator(root, group))
        for group in ("organs", "vertebrae", "cardiac", "muscles", "ribs")
    },
    "imagecas": imagecas,
    "jhh_pancreas": jhh,
    "flare22": flare,
    "flare23": lambda root: flare(root, 14),
    "saros": saros,
    "lidc_classification": lidc,
    "lidc_segmentation": lidc,
    "bcv": bcv,
    "lits": lits,
    "deeplesion": deeplesion,
}
OUTPUTS = {
    **dict(zip((name for name in MAKERS if "total" in name), (18, 25, 19, 22, 25), strict=True)),
    **{"imagecas": 2, "jhh_pancreas": 5, "flare22": 14, "flare23": 14, "saros": 14},
    **{"lidc_classification": 3, "lidc_segmentation": 2, "bcv": 14, "lits": 2, "deeplesion": 2},
}
OPTIONS = {
    "saros": ["--data.patches.size=[16,16,8]"],
    "bcv": ["--data.patches.size=[32,32,16]", "--model.task.window.patch=[32,32,32]"],
    "lits": ["--data.patches.size=[32,32,16]", "--model.task.window.patch=[32,32,32]"],
    "lidc_classification": ["--data.patches.per_epoch=2", "--data.batch_size=2", "--model.network.features=4"],
    "lidc_segmentation": ["--model.network.head_features=8"],
    "deeplesion": [
        "--data.patches.size=[64,64,9]",
        "--model.network.network.depth=18ba",
        "--model.network.network.features=32",
        "--trainer.precision=32",
    ],
}


def small(name):
    model = yaml.safe_load((TARGETS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    options = SMALL if "window" in model["task"]["init_args"] else [each for each in SMALL if "window" not in each]
    return [*options, NARROW[model["network"]["class_path"]], *OPTIONS.get(name, [])]


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a verb on a recipe's own files: words -> exit code, folder of the run, standard output and error."""

    def run(verb, name, *words, maker=None):
        root = tmp_path / "PATH"
        if not root.exists():
            (maker or MAKERS[name])(root)
        capsys.readouterr()
        folder = tmp_path / f"out {len(list(tmp_path.glob('out *')))}"
        options = [f"--data.source.path={root}", f"--trainer.default_root_dir={folder}", *small(name)]
        starts = [word for word in words if "/" in word and not word.startswith("-")]
        code = main([verb, f"target/{name}", *starts, *options, *(word for word in words if word not in starts)])
        told = capsys.readouterr()
        runs = sorted(each.parent for each in folder.rglob("recipe.yaml"))
        return code, runs[0] if runs else None, told.out, told.err

    return run


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


QUICK = ("saros", "lidc_classification")
CROPS = ("lidc_classification", "lidc_segmentation")
"""Targets whose files are crops, of which the middles are scored; all patients are in folds, none is left to test."""
WITHOUT_SCORES = ("bcv", "deeplesion")
"""Targets whose publication has no validation scans, or whose scores are no rows of classes of voxels."""


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in MAKERS]
)
def test_a_published_target_runs_one_step_on_files_in_its_layout(command, name):
    code, run, out, err = command("fit", name)
    assert code == 0, err
    if name in WITHOUT_SCORES:
        assert (run / "checkpoints" / "last.ckpt").is_file()
        return
    scored = [next(iter(row.values())) for row in rows(run / f"{'validation_' if name in CROPS else ''}scores.csv")]
    assert len(scored) == OUTPUTS[name]  # the classes and their mean: one row for each output, the background's for it
    if name not in CROPS:
        assert [row["class"] for row in rows(run / "native_scores.csv")] == scored
        assert "on the scans' own grids" in out


def test_every_recipe_that_stands_apart_from_the_others_has_files_here():
    text = (TARGETS.parents[1] / "tests" / "test_recipes.py").read_text(encoding="utf-8")
    apart = json.loads(re.sub(r"\((.*?)\)", r"[\1]", re.findall(r"OWN_LAYOUT = (\(.*?\))", text)[0]))
    assert {path.stem for path in TARGETS.glob("*.yaml") if any(fnmatch(path.stem, each) for each in apart)} == {
        *MAKERS
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_header_has_commands_that_exist(name):
    found = commands(TARGETS / f"{name}.yaml")
    assert {words[0] for words in found} <= {"fit", "test"}
    for words in found:
        assert parses(words)
        assert f"{name}" in words[1]


def test_shots_are_nested_inside_the_training_list_of_a_publication(tmp_path):
    totalsegmentator(tmp_path / "PATH", "ribs")
    for split, subjects in {"train": ("s0000", "s0003"), "val": ("s0001",), "test": ("s0002",)}.items():
        text = "".join(f"{subject}\tanything\n" for subject in subjects)
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    lists = {split: tmp_path / f"{split}.txt" for split in ("train", "val", "test")}
    cases = ScanLayout(tmp_path / "PATH", "totalsegmentator", lists=lists).cases()
    of = {shots: [each for each in Splits(shots=shots).assign(cases) if each.split == "train"] for shots in (1, 2)}
    assert {each.subject for each in of[1]} < {each.subject for each in of[2]} == {"s0000", "s0003"}


@pytest.mark.slow
@pytest.mark.parametrize("group", ["organs", "cardiac"])
def test_version_2_of_totalsegmentator_is_learned_in_the_classes_of_version_1_or_in_its_own(command, group):
    words = ["--data.source.vocabulary=totalsegmentator_v2"]
    template = f"totalsegmentator_v{1 if group == 'organs' else 2}/{group}"
    own = load_vocabulary("totalsegmentator_v2").groups

    def maker(root):
        names = [*own["organs"], *own["cardiac"]]
        for name in ("s0000", "s0001", "s0002", "s0003", "s0004"):
            case_folder(root / name, names)
        (root / "meta.csv").write_text("image_id;split\n", encoding="utf-8")
        (root / "meta.csv").write_text("image_id;split\ns0000;train\ns0001;val\ns0002;test\n", encoding="utf-8")

    code, run, _, err = command(
        "fit", f"totalsegmentator_{group}", *words, f"--data.classes.template={template}", maker=maker
    )
    assert code == 0, err
    version, _, _ = template.partition("/")
    expected = load_vocabulary(version).groups[group]
    assert [row["class"] for row in rows(run / "scores.csv")] == [*expected, "mean"]


@pytest.fixture
def weights(tmp_path):
    """A file of weights that expect what SuPreM's do, for the small networks of these tests."""

    def make(kind=GenesisUNet, contract=SUPREM):
        network = kind(init_filters=2 if kind is GenesisUNet else 8, out_channels=len(contract.classes))
        path = tmp_path / "weights.safetensors"
        write_weights(path, network, contract, {})
        return path

    return make


def test_the_published_preprocessing_breaks_the_contract_by_the_keys_that_the_recipe_allows(command, weights):
    path = f"--model.weights={weights()}"
    published = command("fit", "totalsegmentator_ribs", "method/own_preprocessing", path)
    assert published[0] == 0, published[3]
    assert "allowed: window: the weights expect (-175, 250), the data give (-250, 250)" in published[2]
    refused = command("fit", "totalsegmentator_ribs", path, "--model.allow=[]")
    assert refused[0] == 2
    assert "window (-175, 250), not (-250, 250)" in refused[3]


@pytest.mark.slow
def test_with_a_start_the_scans_are_prepared_as_the_weights_expect(command, weights):
    path = f"--model.weights={weights()}"
    twin = command("fit", "totalsegmentator_ribs", path, "--model.contract=adopt", "--model.allow=[]")
    assert twin[0] == 0, twin[3]
    assert "adopted: window (-175, 250) instead of (-250, 250)" in twin[2]


def test_a_lesion_is_decided_on_by_patient_and_no_patient_is_in_two_splits(command, weights):
    pattern = "--data.source.patient=(P[0-9])_.*"
    words = ["--data.splits.test_share=0.7", "--data.splits.seed=1", f"--model.weights={weights(SegResNet)}"]
    code, run, out, err = command("fit", "jhh_pancreas", "method/own_preprocessing", pattern, *words)
    assert code == 0, err
    assert "allowed: spacing_mm: the weights expect (1.5, 1.5, 1.5), the data do not say" in out
    assert "fresh      conv_final.2.conv.weight" in out  # as published, though both have a pancreas
    patients = rows(run / "patients.csv")
    assert len(patients) == 2  # of three, with two scans each
    truth = {row["patient"]: row["cyst"] for row in patients}
    assert all(truth[name] == ("0" if name == "P2" else "1") for name in truth)
    decisions = [(row["lesion"], row["least mm3"]) for row in rows(run / "decisions.csv")]
    assert decisions == [("pdac", "3.75"), ("cyst", "5"), ("pnet", "4.375"), ("any of them", "")]
    assert len(rows(run / "cases.csv")) == 4


def exported(folder):
    """Weights in the classes of SuPreM's, with all that scores without training need."""
    spec = {"class_path": "lightning_atlas.networks.GenesisUNet", "init_args": {"init_filters": 2, "out_channels": 6}}
    names = ("task", "preprocessing", "training", "metrics", "environment", "licence", "citation", "source")
    facts = dict.fromkeys(names) | {"task": {"kind": "overlapping", "window": {"patch": [16, 16, 16], "overlap": 0.0}}}
    write_export(folder, GenesisUNet(init_filters=2, out_channels=6), SUPREM, spec, facts)
    return f"--weights={folder}"


def test_patients_are_decided_on_without_training(command, tmp_path):
    """The three lesions of the dataset are one class of the weights."""
    decide = "[{class_path: PatientDecision, init_args: {organ: pancreas, lesions_mm3: {tumor: 0}}}]"
    words = ["--data.classes={pancreas: [pancreas], tumor: [pancreas_tumor]}", f"--trainer.callbacks={decide}"]
    code, run, out, err = command("test", "jhh_pancreas", exported(tmp_path / "weights"), *words)
    assert code == 0, err
    assert "classes scored: pancreas, tumor" in out
    assert "adopted: spacing_mm (1.5, 1.5, 1.5)" in out
    (decision,) = rows(run / "decisions.csv")
    patients = rows(run / "patients.csv")
    assert int(decision["positives"]) == len(patients) == 2
    assert all(0 <= float(row["tumor score"]) <= 1 for row in patients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flare22", "flare23", "totalsegmentator_organs"])
def test_published_weights_are_scored_without_training_on_what_they_know(command, tmp_path, name):
    code, run, out, err = command("test", name, exported(tmp_path / "weights"))
    assert code == 0, err
    found = [row["class"] for row in rows(run / "native_scores.csv")]
    assert set(found) == {"liver", "pancreas", "kidney_left", "kidney_right", "mean"}
    assert "not scored: spleen: the weights have no such class" in out


def test_published_folds_are_those_that_validate(tmp_path):
    saros(tmp_path / "PATH")
    cases = ScanLayout(tmp_path / "PATH", vocabulary="saros").cases()
    assert {case.subject: case.fold for case in cases} == dict(
        zip([f"case_{n:03d}" for n in range(4)], (0, 1, 1, None), strict=True)
    )
    divided = {each.subject: each.split for each in Splits().assign(cases, fold=1)}
    assert divided == {"case_000": "train", "case_001": "val", "case_002": "val", "case_003": "test"}
    with pytest.raises(ValueError, match="there is no fold 2; 2 folds are called 0 to 1"):
        Splits().assign(cases, fold=2)


def test_undrawn_planes_of_saros_are_unknown_and_drawn_ones_are_not(tmp_path):
    saros(tmp_path / "PATH")
    case = ScanLayout(tmp_path / "PATH", vocabulary="saros").cases()[0]
    drawing = read_case(case)[1]
    known = np.any(drawing.drawn, axis=1, keepdims=False)[drawing.rows]
    assert known[:, :, ::5].all()
    assert not known[:, :, np.arange(SIDE) % 5 != 0].any()
