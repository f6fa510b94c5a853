"""What is written is a MONAI bundle: MONAI's own tools read it, and its transforms do what the contract says."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import verify_net_in_out

from lightning_atlas.contract import Contract
from lightning_atlas.intake.bundle import write_bundle
from lightning_atlas.intake.exported import build

OURS = {"class_path": "lightning_atlas.networks.UNet", "init_args": {"out_channels": 3, "features": [4, 8]}}
MONAI = {
    "class_path": "lightning_atlas.networks.as_network",
    "init_args": {
        "network": {
            "class_path": "monai.networks.nets.UNet",
            "init_args": {
                "spatial_dims": 3,
                "in_channels": 1,
                "out_channels": 3,
                "channels": [4, 8],
                "strides": [2],
            },
        },
        "encoder": ["model.0"],
        "decoder": ["model.1"],
        "head": ["model.2"],
    },
}
CONTRACT = Contract(
    classes=("liver", "spleen"),
    modality="CT",
    orientation="RAS",
    spacing_mm=(2.0, 2.0, 2.0),
    normalization="window",
    window=(-100.0, 100.0),
    range=(0.0, 1.0),
)
FACTS = {
    "task": {"kind": "exclusive", "window": {"patch": [16, 16, 16], "overlap": 0.25}},
    "metrics": {"split": "test", "cases": 1, "note": "One.", "mean": {"dice": 0.5, "low": None, "high": None, "n": 1}},
    "licence": "Apache-2.0",
    "citation": "Somebody 2026",
    **dict.fromkeys(("preprocessing", "training", "environment", "source")),
}
FACTS["metrics"]["classes"] = {}
# What MONAI's specification and the schema of its metadata ask for.
REQUIRED = {
    **dict.fromkeys(("schema", "version", "monai_version", "pytorch_version", "numpy_version"), str),
    **dict.fromkeys(("task", "description", "authors", "copyright"), str),
    **dict.fromkeys(("required_packages_version", "network_data_format"), dict),
}
TENSOR = {
    **dict.fromkeys(("type", "format", "dtype"), str),
    **dict.fromkeys(("spatial_shape", "value_range"), list),
    **{"num_channels": int, "is_patch_data": bool, "channel_def": dict},
}


@pytest.fixture(params=[OURS, MONAI], ids=["ours", "monai"])
def written(request, tmp_path):
    """A bundle's folder, and the network whose weights are in it."""
    network = build(request.param, outputs=3).eval()
    write_bundle(tmp_path / "bundle", network.state_dict(), CONTRACT, request.param, FACTS)
    return tmp_path / "bundle", network


def parser_of(folder, **changes):
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    parser["bundle_root"] = str(folder)
    for key, value in changes.items():
        parser[key] = value
    return parser


def test_monai_builds_the_network_and_loads_its_weights(written):
    folder, network = written
    built = parser_of(folder).get_parsed_content("network_def").eval()
    built.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(built(image), network(image))


def test_the_layout_and_the_metadata_are_those_of_the_specification(written):
    folder, _ = written
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("configs/metadata.json", "configs/inference.json", "models/model.pt"),
        *("docs/README.md", "LICENSE"),
    }
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert all(isinstance(metadata[key], kind) for key, kind in REQUIRED.items())
    given, found = (
        metadata["network_data_format"]["inputs"]["image"],
        metadata["network_data_format"]["outputs"]["pred"],
    )
    assert all(isinstance(each[key], kind) for key, kind in TENSOR.items() for each in (given, found))
    assert found["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert (given["value_range"], given["spatial_shape"]) == ([0.0, 1.0], [16, 16, 16])
    assert "Apache-2.0" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "models/model.pt" in (folder / "docs" / "README.md").read_text(encoding="utf-8")


def test_monai_verifies_what_the_network_takes_and_returns(written):
    folder, _ = written
    configs = folder / "configs"
    verify_net_in_out(
        "network_def", str(configs / "metadata.json"), str(configs / "inference.json"), device="cpu", p=1, n=1, any=1
    )


def test_its_transforms_go_from_a_file_to_labels_on_the_files_grid(written, tmp_path):
    folder, network = written
    values = np.random.default_rng(0).uniform(-300, 300, (24, 20, 18)).astype(np.float32)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, -2.0, 2.0, 1.0])), tmp_path / "scans" / "one.nii.gz")
    parser = parser_of(folder, dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"))
    case = parser.get_parsed_content("dataset")[0]
    # LPS to RAS reverses i and j; the window takes -100 and 100 to 0 and 1.
    expected = (values[::-1, ::-1].clip(-100, 100) + 100) / 200
    assert np.allclose(case["image"][0].numpy(), expected, atol=1e-5)
    with torch.no_grad():
        case["pred"] = parser.get_parsed_content("inferer")(case["image"][None], network)[0]
    labels = case["pred"].argmax(0).numpy()[::-1, ::-1]
    parser.get_parsed_content("postprocessing")(case)
    (file,) = (tmp_path / "out").rglob("*.nii.gz")
    saved = nib.Nifti1Image.from_filename(file)
    assert np.allclose(np.asarray(saved.affine), np.diag([-2.0, -2.0, 2.0, 1.0]))
    assert (np.asarray(saved.dataobj).squeeze() == labels).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"normalization": "percentiles", "window": (0.5, 99.5)}, "ScaleIntensityRangePercentilesd"),
        ({"normalization": "z-score", "window": None, "range": None}, "NormalizeIntensityd"),
    ],
)
def test_other_intensities_have_their_transform(tmp_path, change, name):
    network = build(OURS)
    contract = Contract.from_dict(CONTRACT.to_dict() | change)
    write_bundle(tmp_path / "bundle", network.state_dict(), contract, OURS, FACTS)
    steps = parser_of(tmp_path / "bundle").get("preprocessing")["transforms"]
    assert [step["_target_"] for step in steps][3] == name


def test_intensities_that_monai_cannot_make_are_refused(tmp_path):
    contract = Contract.from_dict(CONTRACT.to_dict() | {"normalization": "percentiles above air"})
    with pytest.raises(ValueError, match="percentiles above air; export without --bundle"):
        write_bundle(tmp_path / "bundle", build(OURS).state_dict(), contract, OURS, FACTS)
    assert list(tmp_path.iterdir()) == []


def test_classes_that_overlap_are_decided_each_for_itself(tmp_path):
    contract = Contract.from_dict(CONTRACT.to_dict() | {"overlapping": True})
    spec = {**OURS, "init_args": {**OURS["init_args"], "out_channels": 2}}
    write_bundle(tmp_path / "bundle", build(spec).state_dict(), contract, spec, FACTS)
    parser = parser_of(tmp_path / "bundle")
    steps = parser.get("postprocessing")["transforms"]
    assert steps[0]["sigmoid"] is True
    assert steps[2]["threshold"] == 0.5
    assert parser["_meta_::network_data_format::outputs::pred::channel_def"] == {"0": "liver", "1": "spleen"}


@pytest.mark.parametrize(
    ("spec", "task", "told"),
    [
        (OURS, {"threshold": 0.5}, "this task has a threshold; export without --bundle"),
        ({"class_path": "lightning_atlas.networks.ValidUNet"}, {}, "windows of ValidUNet lack their faces"),
    ],
)
def test_what_monai_would_predict_otherwise_is_refused(tmp_path, spec, task, told):
    with pytest.raises(ValueError, match=told):
        write_bundle(tmp_path / "bundle", {}, CONTRACT, spec, {**FACTS, "task": {**(FACTS["task"] or {}), **task}})
    assert list(tmp_path.iterdir()) == []
