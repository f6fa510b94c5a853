import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lightning_atlas.callbacks.expectation import SavedBytes
from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder
from lightning_atlas.contract import Contract, differences
from lightning_atlas.data import Manifest, write_manifest
from lightning_atlas.data.cases import Case
from lightning_atlas.data.embedded import embedded_case
from lightning_atlas.data.survey.fingerprint import Fingerprint, fingerprint
from lightning_atlas.data.survey.fingerprint_case import LEVELS, CaseFingerprint, Channel, Intensities, Structure
from lightning_atlas.data.survey.proposal import (
    PROGRAM_BYTES,
    chosen_spacing,
    costs,
    fitted_patch,
    propose,
    training_cases,
    turned,
    voxel_bytes,
)
from lightning_atlas.data.survey.write_recipe import Start, own_classes, write_recipe
from lightning_atlas.intake import zoo
from lightning_atlas.networks import UNet

STARTER = zoo.find("starter_abdomen_ct")
START = Start(STARTER.name, STARTER.contract, STARTER.network or {})


def made_up(subject="a", low=-1000.0, high=1000.0, **changes):
    """A fingerprint of a scan that was never made, with intensities spread evenly from `low` to `high`."""
    seen = Intensities(
        tuple(low + (high - low) * level / 100 for level in LEVELS), (low + high) / 2, (high - low) / 3.5
    )
    case = CaseFingerprint(
        subject=subject,
        split="train",
        patient=subject,
        dataset="",
        modality="CT",
        vocabulary=None,
        shape=(256, 256, 100),
        spacing_mm=(1.5, 1.5, 2.0),
        orientation="LPS",
        channels={"image": Channel(seen, seen, (0.0,) * 48)},
        drawn_axis="k",
        planes=100,
        structures={"liver": Structure(1500.0, 100, 60, 120.0), "spleen": Structure(200.0, 100, 20, 40.0)},
    )
    return replace(case, **changes)


def cohort(number=10, **changes):
    return Fingerprint(tuple(made_up(f"s{n}", **changes) for n in range(number)))


def test_the_spacing_is_the_median_and_never_finer_than_the_finest_scan():
    random = np.random.default_rng(0)
    for _ in range(50):
        spacings = random.uniform(0.5, 1.4, (7, 3))
        (chosen, _), finest = chosen_spacing(spacings), spacings.min(axis=0)
        assert chosen == pytest.approx(np.median(spacings, axis=0), abs=1e-3)
        assert (np.array(chosen) >= finest - 1e-9).all()


def test_where_slices_are_thick_the_spacing_is_that_of_the_thinner_ones():
    spacings = np.array([[1.0, 1.0, thick] for thick in (2.0, 3.0, 5.0, 5.0, 5.0, 5.0, 5.0, 7.0, 7.0, 9.0, 9.0)])
    chosen, reason = chosen_spacing(spacings)
    assert chosen == (1, 1, 3)
    assert "10th percentile" in reason
    mild, reason = chosen_spacing(spacings / (1, 1, 2))
    assert mild == (1, 1, 2.5)
    assert "percentile" not in reason


def test_values_follow_the_axes():
    assert turned((1.0, 2.0, 3.0), "LPS") == (1, 2, 3)
    assert turned((1.0, 2.0, 3.0), "SAR") == (3, 2, 1)
    assert turned((1.0, 2.0, 3.0), "PIR") == (2, 3, 1)


@pytest.mark.parametrize("shape", [(250.0, 250.0, 133.0), (512.0, 512.0, 30.0), (90.0, 40.0, 9.0), (7.0, 300.0, 300.0)])
@pytest.mark.parametrize("most", [5_000, 100_000, 3_000_000])
def test_a_patch_is_divisible_inside_the_scan_and_within_its_voxels(shape, most):
    patch = fitted_patch(np.array(shape), most)
    least = [8 if side < 48 else 16 for side in shape]
    assert all(side % step == 0 for side, step in zip(patch, least, strict=True))
    assert all(side <= max(whole, step) for side, whole, step in zip(patch, shape, least, strict=True))
    assert math.prod(patch) <= max(most, math.prod(least))
    assert math.prod(patch) > most / 4 or patch == fitted_patch(np.array(shape), 1e12)


def test_a_patch_has_the_proportions_of_the_scan():
    i, j, k = fitted_patch(np.array((400.0, 400.0, 200.0)), 500_000)
    assert i == pytest.approx(j, abs=16)
    assert i / k == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("gigabytes", [1, 2, 8, 24])
def test_a_step_stays_within_the_memory(gigabytes):
    proposal = propose(cohort(), memory_bytes=gigabytes * 10**9)
    voxels = proposal.batch_size * math.prod(proposal.patch)
    assert proposal.batch_size >= 2
    assert PROGRAM_BYTES + voxels * voxel_bytes(3) <= gigabytes * 10**9
    more = propose(cohort(), memory_bytes=2 * gigabytes * 10**9)
    assert more.batch_size * math.prod(more.patch) > voxels


def test_too_little_memory_says_what_is_needed():
    with pytest.raises(ValueError, match=r"no patch fits into 0\.60 GB; the smallest takes 0\.61 GB"):
        propose(cohort(), memory_bytes=PROGRAM_BYTES)


@pytest.mark.parametrize(("outputs", "features"), [(2, 16), (30, 16), (10, 32)])
def test_the_bytes_of_a_voxel_are_more_than_the_network_keeps_for_it(outputs, features):
    network = UNet(1, outputs, (features, 2 * features, 4 * features, 6 * features))
    saved = SavedBytes(network)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        network(torch.randn(1, 1, 32, 32, 32)).float().log_softmax(1).sum()
    kept = saved.total / 32**3
    assert 0.6 < kept / voxel_bytes(outputs, features) < 1


def test_ct_has_a_window_from_its_structures():
    proposal = propose(cohort(low=-103.0, high=397.0))
    contract = proposal.contract
    assert (contract.normalization, contract.window, contract.range) == ("window", (-110, 400), (0, 1))
    assert contract.orientation == "RAS"


def test_mr_is_taken_by_the_percentiles_of_each_scan():
    contract = propose(cohort(low=0.0, high=5000.0, modality="MR")).contract
    assert (contract.normalization, contract.window) == ("percentiles", (1, 99))


def test_air_tells_ct_where_nobody_declares_it():
    dark, bright = (propose(cohort(low=low, high=1000.0, modality=None)) for low in (-1000.0, 0.0))
    assert dark.contract.normalization == "window"
    assert "no modality is declared" in dark.reasons["normalization"]
    assert bright.contract.normalization == "percentiles"
    assert dark.contract.modality is None


def test_weights_decide_on_what_their_contract_states():
    contract = Contract((), "CT", "LPS", (1.0, 2.0, 3.0), "window", (-991.0, 500.0), (-1.0, 1.0))
    assert differences(contract, propose(cohort(), contract).contract) == []
    on_mr = differences(contract, propose(cohort(modality="MR"), contract).contract)
    assert {each.key for each in on_mr} == {"modality", "normalization", "window"}
    by_scan = replace(contract, normalization="z-score", window=None, range=None)
    assert {each.key for each in differences(by_scan, propose(cohort(modality="MR"), by_scan).contract)} == {"modality"}


def test_scans_that_validate_or_test_have_no_say():
    odd = {"spacing_mm": (9.0, 9.0, 9.0), "modality": "CT"}
    with_others = (*cohort(3).cases, made_up("v", split="val", **odd), made_up("t", split="test", **odd))
    proposal = propose(Fingerprint(with_others))
    assert proposal.contract.spacing_mm == (1.5, 1.5, 2)
    assert "3 training scans" in proposal.reasons["epochs"]
    assert len(training_cases(cohort(10))) == 6
    with pytest.raises(ValueError, match="no scan to train on: found test 10"):
        propose(cohort(10, split="test"))


def test_the_method_follows_the_number_of_training_scans():
    def method(number):
        cases = (*cohort(number).cases, made_up("v", split="val"), made_up("t", split="test"))
        return propose(Fingerprint(cases), STARTER.contract).adaptation

    assert [method(each) for each in (2, 3, 49, 50)] == [
        "FrozenEncoder",
        "LayerWiseDecay",
        "LayerWiseDecay",
        "FullFineTuning",
    ]
    assert propose(cohort()).adaptation is None


def test_more_scans_train_longer_and_weights_shorten_it():
    def steps(number, contract=None):
        proposal = propose(cohort(number), contract)
        assert proposal.per_epoch % proposal.batch_size == 0
        return proposal.epochs * proposal.per_epoch

    assert steps(5) <= steps(100) <= steps(400)
    assert steps(100, STARTER.contract) < steps(100)


def test_drawn_planes_and_thick_voxels_keep_their_planes():
    assert propose(cohort()).flat_axis is None
    assert propose(cohort(spacing_mm=(1.0, 1.0, 5.0))).flat_axis == "k"
    sparse = {"liver": Structure(1.0, 7, 60, 120.0)}
    assert propose(cohort(structures=sparse)).flat_axis == "k"
    assert propose(cohort(structures=sparse, drawn_axis="j")).flat_axis == "j"
    assert propose(cohort(structures=sparse), Contract(orientation="SAR")).flat_axis == "i"


def test_every_guessed_key_has_a_reason():
    for contract in (None, STARTER.contract):
        reasons = propose(cohort(), contract).reasons
        guessed = {"orientation", "spacing_mm", "normalization", "range", "patch", "batch_size", "per_epoch", "epochs"}
        assert set(reasons) == guessed | {"augment", "adaptation"}
        assert all(reasons.values())


def test_costs_name_slabs_thin_structures_and_the_window():
    thin = {
        "wall": Structure(50.0, 20, 1, 0.8),
        "seed": Structure(0.05, 20, 3, 4.0),
        "liver": Structure(1e3, 20, 9, 90.0),
    }
    contract = replace(STARTER.contract, spacing_mm=(1.5, 1.5, 1.5), window=(-500.0, 500.0))
    scans = cohort(3, spacing_mm=(1.5, 1.5, 10.0), structures=thin)
    lines = "\n".join(costs(scans, contract))
    assert "6.67 times its voxels" in lines
    assert "3 scans in slabs of up to 10 mm along k: 6.7 planes are made of one" in lines
    assert "wall is thinner than a voxel" in lines
    assert "seed has 14.8 voxels" in lines
    assert "liver has" not in lines
    assert "-500 to 500 flattens 50.0%" in lines
    assert "knows 1 of 3 names: liver" in lines
    assert "the weights know CT, not MR" in "\n".join(costs(cohort(modality="MR"), contract))
    assert costs(cohort(spacing_mm=(1.5, 1.5, 1.5)), Contract(spacing_mm=(1.5, 1.5, 1.5))) == []


# The recipe.


def folder_of_scans(folder, number=5, modality="CT"):
    """Writes small scans with two structures; returns the cases."""
    random = np.random.default_rng(0)
    cases = []
    for n in range(number):
        label = np.zeros((32, 24, 24), dtype=np.uint8)
        label[8:20, 8:20, 8:20], label[24:30, 10:18, 12:20] = 1, 2
        image = (label * 60.0 - 40 + random.normal(0, 10, label.shape)).astype(np.float32)
        for kind, data in (("", image), ("_labels", label)):
            affine = np.diag([-3.0, -3.0, 3.0, 1.0])
            tio.ScalarImage(tensor=torch.from_numpy(data)[None], affine=affine).save(folder / f"p {n}{kind}.nii.gz")
        files = (folder / f"p {n}.nii.gz", folder / f"p {n}_labels.nii.gz")
        cases.append(Case(f"p {n}", "train", *files, {"liver": 1, "on": 2}, modality=modality))
    write_manifest(folder / "all scans.json", cases)
    return cases


def recipe_for(cases, start=None, path="my.yaml", **changes):
    measured = fingerprint(cases, progress=False)
    proposal = propose(measured, start.contract if start else None, **changes)
    write_recipe(Path(path), Path("all scans.json"), measured, proposal, start=start)
    return Path(path).read_text(encoding="utf-8")


def parsed_data(path):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    section = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["data"]
    return parser.instantiate_classes(parser.parse_object({"data": section}))["data"]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("start", [None, START], ids=["scratch", "starter"])
def test_the_recipe_gives_the_contract_that_was_proposed(tmp_path, start, modality):
    cases = folder_of_scans(tmp_path, modality=modality)
    text = recipe_for(cases, start)
    data = parsed_data("my.yaml")
    proposal = propose(fingerprint(cases, progress=False), start and start.contract)
    assert replace(data.contract, classes=()) == replace(proposal.contract, classes=())
    assert data.contract.classes == ("liver", "on")
    module = yaml.safe_load(text)["model"]["init_args"]
    broken = differences(start.contract, data.contract) if start else []
    assert module.get("allow", []) == [each.key for each in broken]
    assert not any(each.forbidden for each in broken)
    assert module.get("contract") == ("adopt" if start else None)
    if start:
        written = list(data.preprocess)
        assert data.adopt(start.contract) == []
        assert data.preprocess == written
    assert {case.split for case in data.cases} == {"train", "val", "test"}


def test_scans_of_no_declared_modality_are_not_taken_for_what_the_weights_know(tmp_path):
    """The weights' window would be adopted where nobody says that the scans have no such units."""
    cases = [replace(case, modality=None) for case in folder_of_scans(tmp_path)]
    write_manifest(tmp_path / "all scans.json", cases)
    text = recipe_for(cases, START)
    assert "contract: adopt" not in text
    assert yaml.safe_load(text)["model"]["init_args"]["allow"] == ["modality", "normalization", "window"]


def test_the_recipe_runs_as_it_is(tmp_path, capsys):
    recipe_for(folder_of_scans(tmp_path), START, memory_bytes=700_000_000)
    short = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0"]
    code = main(["fit", "my.yaml", *short, f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    assert code == 0, capsys.readouterr()
    assert len(list((tmp_path / "runs").rglob("last.ckpt"))) == 1


def test_the_recipe_runs_with_the_smoke_overlay(tmp_path, capsys):
    recipe_for(folder_of_scans(tmp_path), path="my scans.yaml")
    smoke = recipes_folder() / "machine" / "smoke.yaml"
    code = main(["fit", "my scans.yaml", str(smoke), f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    assert code == 0, capsys.readouterr()


def test_each_guessed_line_has_its_reason_and_no_line_is_too_long(tmp_path):
    lines = recipe_for(folder_of_scans(tmp_path), START).splitlines()
    assert max(map(len, lines)) <= 120
    keys = ("splits:", "patches:", "batch_size:", "max_epochs:", "adaptation:", "- {class_path: torchio")
    guessed = [n for n, line in enumerate(lines) if line.strip().startswith(keys)]
    assert len(guessed) >= 11
    assert [lines[n] for n in guessed if " # " not in lines[n] and not lines[n - 1].strip().startswith("#")] == []
    assert "# Result: not yet run" in lines
    assert "#       python -m lightning_atlas fit my.yaml" in lines
    assert '# Run:  python -m lightning_atlas prepare "all scans.json"' in lines


def test_the_network_is_that_of_the_weights(tmp_path):
    other = Start("w.ckpt", STARTER.contract, {"class_path": "SegResNet", "init_args": {"out_channels": 7, "width": 8}})
    for start, network in ((START, START.network), (other, other.network)):
        model = yaml.safe_load(recipe_for(folder_of_scans(tmp_path), start))["model"]["init_args"]
        settings = {key: value for key, value in network["init_args"].items() if key != "out_channels"}
        assert model["network"]["class_path"] == network["class_path"].rpartition(".")[2]
        assert model["network"]["init_args"] == settings
        assert model["weights"] == start.weights


def test_one_scan_is_divided_by_its_planes(tmp_path):
    cases = folder_of_scans(tmp_path, 1)
    recipe_for(cases)
    data = parsed_data("my.yaml")
    assert {case.split for case in data.cases} == {"train", "val"}
    assert len({case.image for case in data.cases}) == 1


def test_names_that_share_voxels_are_not_both_classes():
    chest, abdomen = (
        fingerprint([embedded_case(scan, "train")], progress=False) for scan in ("chest_ct", "abdomen_ct")
    )
    assert set(own_classes(chest)[0]) == set(chest.names)
    both = Fingerprint((*chest.cases, *abdomen.cases))
    classes, left_out = own_classes(both)
    assert "ribs" not in classes
    assert {"rib_left_7", "liver"} <= set(classes)
    assert any(line.startswith("ribs, of which rib_left_7") for line in left_out)
    case = made_up(overlaps=(("thing", "other"), ("liver", "liver_tumor")))
    drawn = {name: Structure(9.0, 100, 9, 9.0) for name in ("thing", "other", "liver", "liver_tumor", "odd[1]")}
    gone = {"gone": Structure(0.0, 100, 0, 0.0)}
    classes, left_out = own_classes(Fingerprint((replace(case, structures=drawn | gone),)))
    assert set(classes) == {"thing", "liver", "liver_tumor", "odd[1]"}
    assert classes["odd[1]"] == ["odd[[]1]"]
    assert [line.split(",")[0] for line in left_out] == ["other", "gone"]


def test_classes_that_nobody_drew_are_refused(tmp_path):
    measured = fingerprint(folder_of_scans(tmp_path, 2), progress=False)
    with pytest.raises(ValueError, match="nothing is called 'livr'"):
        write_recipe(Path("my.yaml"), Path("m.json"), measured, propose(measured), {"liver": ["livr"]})
    bare = Fingerprint(tuple(replace(case, structures={}) for case in measured.cases))
    with pytest.raises(ValueError, match="no class to learn"):
        write_recipe(Path("my.yaml"), Path("m.json"), bare, propose(bare))


def test_the_manifest_is_found_from_the_recipe(tmp_path):
    cases = folder_of_scans(tmp_path)
    recipe_for(cases)
    source = parsed_data("my.yaml").source
    assert isinstance(source, Manifest)
    assert [case.subject for case in source.cases()] == [case.subject for case in cases]
