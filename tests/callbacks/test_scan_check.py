import json
from dataclasses import replace

import pytest

from lightning_atlas.callbacks import PredictionWriter, ScanCheck
from lightning_atlas.contract import MAY_LIE_OUTSIDE, Contract

SEEN = Contract(
    classes=("liver", "spleen"),
    modality="CT",
    seen_spacing_mm=((0.7, 0.7, 1.0), (0.9, 0.9, 5.0)),
    seen_extent_mm=((300.0, 300.0, 200.0), (450.0, 450.0, 600.0)),
)
INSIDE = Contract(
    seen_spacing_mm=((0.8, 0.8, 2.0), (0.8, 0.8, 2.0)), seen_extent_mm=((400.0, 400.0, 400.0), (400.0, 400.0, 400.0))
)
FAR = replace(INSIDE, modality="MR", seen_extent_mm=((400.0, 400.0, 1800.0), (400.0, 400.0, 1800.0)))


@pytest.fixture
def scans(module, make_data):
    """Give the function that makes a data module of scans as described."""
    module.contract = SEEN

    def make(*described):
        data = make_data(names=[f"case {n}" for n in range(len(described))])
        data.described = lambda split: dict(zip(data.names, described, strict=True)) if split == "predict" else {}
        return data

    return make


def predict(module, data, make_trainer, *callbacks):
    make_trainer(*callbacks, enable_progress_bar=False).predict(module, data, return_predictions=False)


def test_a_scan_outside_is_refused_by_name_before_anything_is_computed(
    module, scans, make_trainer, monkeypatch, tmp_path
):
    monkeypatch.setattr(type(module), "predict_step", lambda *_: pytest.fail("computed"))
    callbacks = PredictionWriter(tmp_path / "out"), ScanCheck()
    with pytest.raises(ValueError, match="1 of 3 scans lie outside") as caught:
        predict(module, scans(INSIDE, FAR, INSIDE), make_trainer, *callbacks)
    _, scan, last = str(caught.value).splitlines()
    assert scan.startswith(
        "  case 1: modality: training saw CT, this scan has MR; extent_mm: training saw (300, 300, 200)"
    )
    assert "this scan has (400, 400, 1800)" in scan
    assert last.endswith("--allow modality,extent_mm")
    assert not (tmp_path / "out").exists()


def test_many_are_refused_in_five_lines(module, scans, make_trainer):
    with pytest.raises(ValueError, match=r"and 4 more scans\. Take them out") as caught:
        predict(module, scans(*[FAR] * 7), make_trainer, ScanCheck(["modality"]))
    assert len(str(caught.value).splitlines()) == 5
    assert str(caught.value).endswith("--allow modality,extent_mm")


def test_what_is_allowed_is_predicted_printed_and_listed(module, scans, make_trainer, tmp_path, capsys):
    check = ScanCheck(["extent_mm", "modality"], tmp_path)
    predict(module, scans(INSIDE, FAR), make_trainer, PredictionWriter(tmp_path), check)
    assert (tmp_path / "case 0.nii.gz").is_file()
    assert (tmp_path / "case 1.nii.gz").is_file()
    listed = json.loads((tmp_path / "checks.json").read_text(encoding="utf-8"))
    assert listed["allowed"] == ["extent_mm", "modality"]
    assert list(listed["outside"]) == ["case 1"]
    assert listed["outside"]["case 1"][0] == {"key": "modality", "training": "CT", "scan": "MR"}
    out = capsys.readouterr().out
    assert out.index("wrote 2 predictions") < out.index("outside of what training saw, as allowed")
    assert "case 1: modality: training saw CT" in out
    assert "case 0: " not in out


def test_a_list_of_an_earlier_prediction_does_not_stay(module, scans, make_trainer, tmp_path):
    predict(module, scans(FAR), make_trainer, PredictionWriter(tmp_path), ScanCheck(MAY_LIE_OUTSIDE, tmp_path))
    assert (tmp_path / "checks.json").is_file()
    again = PredictionWriter(tmp_path, overwrite=True), ScanCheck(output=tmp_path)
    predict(module, scans(INSIDE), make_trainer, *again)
    assert not (tmp_path / "checks.json").exists()


def test_other_channels_are_never_allowed(module, scans, make_trainer):
    several = replace(INSIDE, channels=("T1", "T2"))
    with pytest.raises(ValueError, match="never allowed, since the first layer takes 1") as caught:
        predict(module, scans(several), make_trainer, ScanCheck(MAY_LIE_OUTSIDE))
    assert "--allow" not in str(caught.value)


def test_weights_that_do_not_say_what_they_saw_are_told(module, scans, make_trainer, capsys):
    module.contract = Contract(classes=SEEN.classes)
    predict(module, scans(FAR), make_trainer, ScanCheck())
    assert "do not say which scans they saw" in capsys.readouterr().out


def test_data_that_describe_no_scans_are_predicted(module, data, make_trainer):
    predict(module, data, make_trainer, ScanCheck())


@pytest.mark.parametrize("key", ["channels", "range", "all"])
def test_only_what_a_scan_may_differ_in_can_be_allowed(key):
    with pytest.raises(ValueError, match="what can be allowed: modality, spacing_mm, extent_mm, intensities"):
        ScanCheck([key])
