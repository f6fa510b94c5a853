import pytest
from torchio.transforms import RandomAffine, RandomNoise, RescaleIntensity, ToCanonical

from lightning_atlas.data import Patches, ScanDataModule, SimulatedCohort


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Each test has a store of its own, in a folder with a space and an accent."""
    folder = tmp_path_factory.mktemp("préparé là")
    monkeypatch.setenv("LIGHTNING_ATLAS_CACHE", str(folder))
    return folder


@pytest.fixture
def spine():
    """Small simulated spines: T2 MR, 68 x 52 x 67 voxels of 1.5 mm, stored PIR."""

    def build(source=None, **changes):
        settings = {
            "classes": {"cord": ["spinal_cord"], "articular": ["*_articular_*"], "disc": ["vertebra_disc"]},
            "preprocess": [ToCanonical(), RescaleIntensity((-1, 1), percentiles=(1, 99))],
            "augment": [RandomNoise(std=0.05), RandomAffine(degrees=5)],
            "patches": Patches((16, 16, 16), per_epoch=12),
        }
        return ScanDataModule(source or SimulatedCohort("spine_mr", 3, 1, 1), **(settings | changes))

    return build
