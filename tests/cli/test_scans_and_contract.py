"""From a recipe whose preprocessing is not the weights' to predictions on scans of all kinds, by commands alone."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_atlas.cli import main
from lightning_atlas.data.embedded import HERE

OWN = """\
data:
  init_args:
    preprocess:
      - {class_path: torchio.ToOrientation, init_args: {orientation: LPS}}
      - {class_path: torchio.Resample, init_args: {target: 4}}
      - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [-1, 1], percentiles: [1, 99]}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("LIGHTNING_ATLAS_CACHE", str(folder))
        yield folder / "prepared"


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Return the folder of a run that adopted; the recipe in it still has its own preprocessing."""
    folder = tmp_path_factory.mktemp("adopting")
    (folder / "own.yaml").write_text(OWN, encoding="utf-8")
    words = ["target/chest_ct", "start/starter", str(folder / "own.yaml"), "machine/smoke"]
    assert main(["fit", *words, f"--trainer.default_root_dir={folder}"]) == 0
    (made,) = folder.glob("runs/*/*")
    return made


def scans(folder, *names):
    folder.mkdir()
    for name in names:
        shutil.copy(next(HERE.glob(f"{name}.n*")), folder)
    return folder


def predict(run, folder, *options):
    return main(["predict", str(run), "--input", str(folder), "--output", str(folder.with_name("out")), *options])


def spacings(store):
    return {json.loads(path.read_text(encoding="utf-8"))["affine"][0][0] for path in store.glob("*/meta.json")}


def test_scans_are_prepared_as_the_weights_expect_and_never_as_the_recipe_has_it(run, store, tmp_path, capsys):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["model"]["init_args"]["contract"] == "adopt"
    assert recipe["data"]["init_args"]["preprocess"][1]["init_args"]["target"] == 4
    assert predict(run, scans(tmp_path / "in", "spine_ct")) == 0
    assert "adopted: spacing_mm (3, 3, 3) instead of (4, 4, 4)" in capsys.readouterr().out
    assert main(["test", str(run)]) == 0
    assert spacings(store) == {3.0}


@pytest.mark.slow
def test_a_scan_of_another_kind_is_refused_by_name_and_predicted_when_allowed(run, tmp_path, capsys):
    folder = scans(tmp_path / "in", "spine_ct", "abdomen_ct")
    assert predict(run, folder) == 2
    told = capsys.readouterr().err
    assert "1 of 2 scans lie outside of what training saw" in told
    assert "abdomen_ct: spacing_mm: training saw" in told
    assert "; extent_mm: training saw" in told
    assert not (tmp_path / "out").exists()
    keys = told.split("--allow ")[1].split()[0]
    assert predict(run, folder, "--allow", keys) == 0
    assert list(json.loads((tmp_path / "out" / "checks.json").read_text(encoding="utf-8"))["outside"]) == ["abdomen_ct"]
    assert len(list(Path(tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_key_that_no_scan_has_is_an_error_of_the_command(run, tmp_path, capsys):
    assert predict(run, scans(tmp_path / "in", "spine_ct"), "--allow", "colour") == 2
    told = capsys.readouterr().err
    assert "--allow: there is no 'colour' to allow; what can be allowed: modality, spacing_mm" in told
