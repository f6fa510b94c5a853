"""Cases to rank on: never of the test, evenly over the others; patients, scans or planes as units."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_atlas.cli.ranked_cases import Units, chosen_cases, windows_of
from lightning_atlas.data import Patches, ScanDataModule, SimulatedCohort
from lightning_atlas.data.cases import Case
from lightning_atlas.networks import UNet
from lightning_atlas.networks.valid_unet import ValidUNet
from lightning_atlas.ranking.features import Labelled, Reading


def cases(count, split: Any = "train", patients=None):
    return [
        Case(
            f"{split}{n}", split, Path(f"{n}.nii"), Path("label.nii"), {"liver": 1}, patient=f"p{n % (patients or 99)}"
        )
        for n in range(count)
    ]


def test_cases_of_the_test_and_without_labels_are_not_looked_at():
    unlabelled = Case("unlabelled", "train", Path("x.nii"))
    every = [*cases(9), *cases(3, "val"), *cases(5, "test"), *cases(2, "predict"), unlabelled]
    chosen = chosen_cases(every, 100)
    assert {case.split for case in chosen} == {"train", "val"}
    assert (len(chosen), unlabelled in chosen) == (12, False)
    assert [case.subject for case in chosen_cases(every, 4)] == ["train0", "train3", "train6", "val0"]
    with pytest.raises(ValueError, match="test cases are not looked at"):
        chosen_cases(cases(5, "test"), 4)


def added(units, subject, planes):
    places = torch.tensor([[0, 0, plane] for plane in planes])
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0]))
    affine[2, 3] = -20.0
    some = torch.arange(len(planes), dtype=torch.float32)[:, None]
    units.add({"subject": [subject], "affine": affine[None]}, Labelled(places, places), Reading(some, {}, some))


@pytest.mark.parametrize(
    ("looked_at", "said", "count"),
    [
        (cases(6, patients=3), "3 patients", 3),
        (cases(4, patients=2), "4 scans of 2 patients", 4),
        (cases(2), "8 groups of neighbouring planes of 2 scans", 8),
        (cases(1), "5 groups of neighbouring planes of 1 scan", 5),
    ],
)
def test_units_are_patients_or_else_scans_or_else_planes(looked_at, said, count):
    units = Units(looked_at)
    for case in looked_at:
        added(units, case.subject, [0, 2, 3, 3, 7, 9])
    told, parts = units.divided()
    assert told == said
    assert len(parts) == count
    assert sum(len(each) for part in parts for each in part.fine) == 6 * len(looked_at)


def test_a_plane_is_the_same_in_every_window():
    units = Units(cases(1))
    added(units, "train0", [0, 1, 1, 5])
    added(units, "train0", [1, 5])
    _, parts = units.divided()
    assert [sum(len(each) for each in part.fine) for part in parts] == [1, 3, 2]


def test_simulated_subjects_are_called_so():
    told = Units(SimulatedCohort("spine_ct", train=3, val=0, test=0).cases()).kind
    assert told == "simulated subjects, made of one scan"


def test_nothing_drawn_is_refused():
    with pytest.raises(ValueError, match="nobody drew"):
        Units(cases(3)).divided()


@pytest.mark.parametrize(
    ("network", "size"), [(UNet(features=(2, 2, 2)), (12, 16, 8)), (ValidUNet(features=(2, 2)), (26, 32, 24))]
)
def test_windows_are_of_a_size_that_the_network_takes(network, size):
    patches = Patches((10, 16, 8), margin=(2, 2, 2), jitter=0.5)
    data = ScanDataModule(SimulatedCohort("spine_ct", train=1, val=1, test=0, displacement_mm=3.0), patches=patches)
    data.setup("fit")
    windows = windows_of(data, network)
    assert len(windows) == 8
    image = windows[3]["image"]
    assert tuple(image.shape[1:]) == size
    network(image[None].float())


def test_the_split_of_a_case_is_what_the_recipe_says():
    moved = [replace(case, split="test") for case in cases(3)]
    assert [case.subject for case in chosen_cases([*moved, *cases(1, "val")], 9)] == ["val0"]
