"""Start overlays: the network takes the weights that it is written beside, and the data what these expect."""

from typing import Any

import pytest
import yaml

from lightning_atlas.cli import main
from lightning_atlas.cli.recipes import recipes_folder
from lightning_atlas.contract import PREPROCESSED, SEEN
from lightning_atlas.intake.loading import load_weights
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.intake.zoo import build_network, entries

NOT_PUBLISHED = {"humpire_valid_unet": {"spacing_mm"}}
"""What a start leaves to the target, because nobody has published it."""
STARTS = sorted((recipes_folder() / "start").glob("*.yaml"))


def start(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]


def spec(network):
    return {**network, "class_path": f"lightning_atlas.networks.{network['class_path']}"}


@pytest.mark.parametrize("path", STARTS, ids=lambda path: path.stem)
def test_a_start_from_weights_has_the_data_prepared_as_they_expect(path):
    settings = start(path)
    if settings["weights"] is None:
        assert "contract" not in settings
        return
    assert settings["contract"] == "adopt"
    contract = entries()[settings["weights"]].contract
    not_stated = {key for key in PREPROCESSED if not getattr(contract, key)}
    assert not_stated == NOT_PUBLISHED.get(settings["weights"], set())
    assert not any(getattr(contract, key) for key in SEEN)


@pytest.mark.parametrize("path", [path for path in STARTS if start(path)["weights"]], ids=lambda path: path.stem)
def test_the_network_of_a_start_takes_the_whole_encoder_and_decoder_of_its_weights(path):
    settings = start(path)
    entry: Any = entries()[settings["weights"]]
    network: Any = build_network(spec(settings["network"]))
    network.resize(3)
    tensors = build_network(entry.network).state_dict()
    source = SourceWeights(dict(tensors), entry.contract, path.stem, "")
    report = load_weights(network, source, ("liver", "own"), required_share=1.0)
    heads = {name for stage in network.stages() if stage.part == "head" for name in stage.modules}
    assert all(name.startswith(tuple(heads)) for name in report.fresh_names)


def test_weights_that_were_not_fetched_stop_the_fit_before_anything_is_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ATLAS_CACHE", str(tmp_path / "empty"))
    words = ["target/chest_ct", "start/suprem_unet", "machine/smoke", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words]) == 2
    told = capsys.readouterr()
    assert "weights fetch suprem_unet" in told.err
    assert "prepared in" not in told.out
