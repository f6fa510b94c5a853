from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from torchio.transforms import Clamp, Crop, Resample, RescaleIntensity, ToCanonical, ToOrientation

from lightning_atlas.contract import LEVELS, SEEN, outside
from lightning_atlas.data import EmbeddedScan, Patches, ScanDataModule, ScanFolder, SimulatedCohort
from lightning_atlas.data.cases import Case
from lightning_atlas.data.seen import described, measured, united
from lightning_atlas.data.store.prepare import prepare

WINDOW = [Clamp(-200, 300), RescaleIntensity((0, 1), in_min_max=(-200, 300))]


def levels_of(contract) -> Any:
    return contract.seen_intensities


def scans(source, preprocess, **changes):
    data = ScanDataModule(source, None, preprocess, patches=Patches((8, 8, 8), per_epoch=2), **changes)
    data.setup("fit")
    return data


@pytest.fixture
def body(tmp_path):
    """Write a CT of a known body: 40 mm of tissue (-100 to 100) in air, stored in another order of axes."""
    random = np.random.default_rng(0)
    values = np.full((20, 30, 12), -1000.0)
    values[:10, :20, :8] = random.uniform(-100, 100, (10, 20, 8))
    affine = np.array([[0, 0, -5.0, 3], [2.0, 0, 0, 1], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    path = tmp_path / "body.nii.gz"
    tio.ScalarImage(tensor=torch.from_numpy(values.astype(np.float32))[None], affine=affine).save(path)
    return Case("body", "train", path, modality="CT")


@pytest.mark.parametrize("preprocess", [[ToCanonical(), Resample(4), *WINDOW], [ToOrientation("SPL"), *WINDOW]])
def test_size_and_field_of_view_are_the_files_along_the_patients_axes(body, preprocess):
    contract = scans(SimulatedCohort("spine_ct", 1, 0, 0), preprocess).contract
    found = described(body, prepare(body, preprocess)[0], contract)
    assert found.seen_spacing_mm == ((5.0, 2.0, 1.5), (5.0, 2.0, 1.5))
    assert found.seen_extent_mm == ((60.0, 40.0, 45.0), (60.0, 40.0, 45.0))
    assert (found.modality, found.channels) == ("CT", ("image",))


def test_intensities_are_those_of_the_body_in_the_files_units(body):
    preprocess = [ToCanonical(), *WINDOW]
    contract = scans(SimulatedCohort("spine_ct", 1, 0, 0), preprocess).contract
    prepared = prepare(body, preprocess)[0]
    (levels,) = levels_of(described(body, prepared, contract))
    assert [low for low, _ in levels] == pytest.approx([2 * level - 100 for level in LEVELS], abs=8)
    older = replace(prepared, levels=())  # of a store that an earlier version made
    assert levels_of(measured(older, contract))[0][1][0] == pytest.approx(levels[1][0], abs=1)


def test_without_units_the_scanners_scale_has_no_say(body, tmp_path):
    contract = scans(EmbeddedScan("spine_mr", "train"), [RescaleIntensity((0, 1), percentiles=(0.5, 99.5))]).contract
    brighter = tmp_path / "brighter.nii.gz"
    image = tio.ScalarImage(body.image)
    tio.ScalarImage(tensor=(image.data + 1000) * 7, affine=image.affine).save(brighter)
    preprocess = [RescaleIntensity((0, 1), percentiles=(0.5, 99.5))]
    one, other = (
        levels_of(measured(prepare(case, preprocess)[0], contract))[0] for case in (body, replace(body, image=brighter))
    )
    assert np.array(one) == pytest.approx(np.array(other), abs=0.01)


def test_a_fit_keeps_the_ranges_of_its_training_scans_alone():
    preprocess = [ToCanonical(), Resample(3), *WINDOW]
    source = SimulatedCohort("spine_ct", 3, 1, 1)
    data = scans(source, preprocess)
    each = data.described("train")
    assert list(each) == data.subjects("train")
    assert len({levels_of(scan) for scan in each.values()}) == 3
    lows = [levels_of(scan)[0][0][0] for scan in each.values()]
    assert levels_of(data.contract)[0][0] == pytest.approx((min(lows), max(lows)), abs=1e-3)
    assert [outside(data.contract, scan) for scan in each.values()] == [[], [], []]
    assert united([]) == {}
    fresh = ScanDataModule(source, None, preprocess)
    assert [getattr(fresh.contract, key) for key in SEEN] == [None] * 3
    fresh.setup("test")
    assert fresh.contract.seen_extent_mm is None


def test_the_scan_of_another_region_kind_or_unit_lies_outside(tmp_path):
    preprocess = [ToCanonical(), Resample(3), *WINDOW]
    contract = scans(SimulatedCohort("abdomen_ct", 2, 0, 0), preprocess).contract
    folder = tmp_path / "scans"
    folder.mkdir()
    image = tio.ScalarImage(EmbeddedScan("abdomen_ct").case.image)
    crop = Crop((0, 0, 0, 0, 0, image.shape[-1] - 12))
    for name, each in {
        "a same": image,
        "b offset": tio.ScalarImage(tensor=image.data.float() + 1024, affine=image.affine),
        "c slab": crop(image),
    }.items():
        each.save(folder / f"{name}.nii.gz")
    data = ScanDataModule(ScanFolder(folder, modality="CT"), {"liver": ["liver"]}, preprocess)
    data.setup("predict")
    found = {name: [each.key for each in outside(contract, scan)] for name, scan in data.described("predict").items()}
    assert found["a same"] == []
    assert found["b offset"] == ["intensities"]
    assert "extent_mm" in found["c slab"]


@pytest.mark.parametrize("scan", ["abdomen_mr", "spine_mr", "chest_ct"])
def test_the_scan_that_a_cohort_is_made_of_lies_inside(scan):
    preprocess = [ToCanonical(), Resample(3), RescaleIntensity((0, 1), percentiles=(0.5, 99.5))]
    trained = scans(SimulatedCohort(scan, 3, 0, 0), preprocess)
    real = scans(EmbeddedScan(scan, "train"), preprocess)
    assert [outside(trained.contract, each) for each in real.described("train").values()] == [[]]
