import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchio as tio

from lightning_atlas.data import EmbeddedScan, SimulatedCohort
from lightning_atlas.data.store.reading import read_case
from lightning_atlas.data.variation import Variation, identity_grid, turn, warp

SHAPE, SPACING_MM = (61, 50, 56), np.array([6.0, 6.0, 6.0])
HALF_EXTENT_MM = (np.array(SHAPE) - 1) * SPACING_MM / 2


def places_mm(seed, displacement_mm=12.0):
    return warp(np.random.default_rng(seed), SHAPE, SPACING_MM, displacement_mm).numpy() * HALF_EXTENT_MM


def still_mm():
    return identity_grid(SHAPE).numpy() * HALF_EXTENT_MM


def whole(case):
    return read_case(case)[0]


def digest(subject):
    return hashlib.sha256(
        subject.get_image("image").numpy().tobytes() + subject.get_image("label").numpy().tobytes()
    ).hexdigest()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("displacement_mm", [12.0, 30.0])
def test_warp_does_not_fold(seed, displacement_mm):
    places = places_mm(seed, displacement_mm)
    jacobian = np.stack([np.gradient(places, 6.0, axis=axis) for axis in range(3)], axis=-1)
    assert np.linalg.det(jacobian).min() > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_warp_moves_no_farther_than_told_and_not_less_than_a_third(seed):
    moved = np.linalg.norm(places_mm(seed) - still_mm(), axis=-1)
    assert 4.0 < moved.max() <= 12.0


def test_warp_maps_the_scan_onto_itself():
    places = places_mm(0)
    for axis in range(3):
        faces = np.take(places, [0, -1], axis)[..., axis]
        assert np.allclose(np.abs(faces), HALF_EXTENT_MM[axis], atol=1e-3)


def test_warp_is_undone_by_its_own_inverse():
    """Found by fixed-point iteration, which knows nothing of how the warp was made."""
    displacement = torch.from_numpy((places_mm(1) - still_mm()) / HALF_EXTENT_MM).float()
    inverse, there = identity_grid(SHAPE), torch.zeros(*SHAPE, 3)
    for _ in range(60):
        there = torch.nn.functional.grid_sample(
            displacement.movedim(-1, 0)[None], inverse.flip(-1)[None], padding_mode="border", align_corners=True
        )[0].movedim(0, -1)
        inverse = identity_grid(SHAPE) - there
    residue_mm = ((inverse + there - identity_grid(SHAPE)) * torch.tensor(HALF_EXTENT_MM)).norm(dim=-1)
    assert residue_mm.max() < 0.01


def test_turn_is_a_similarity_in_millimetres_also_on_a_grid_of_unequal_voxels():
    affine = np.array([[0, 0, 2.0, 1], [-1, 0, 0, 5], [0, -4, 0, 9], [0, 0, 0, 1]])
    shape = (20, 12, 16)
    turned = turn(np.random.default_rng(0), affine, identity_grid(shape)).numpy()
    half_extent_mm = np.linalg.norm(affine[:3, :3], axis=0) * (np.array(shape) - 1) / 2
    corners = [np.array(corner) * half_extent_mm for corner in (turned[0, 0, 0], turned[-1, 0, 0], turned[0, -1, 0])]
    still = [np.array(corner) * half_extent_mm for corner in ([-1, -1, -1], [1, -1, -1], [-1, 1, -1])]
    ratios = [
        np.linalg.norm(corners[a] - corners[b]) / np.linalg.norm(still[a] - still[b])
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert np.ptp(ratios) < 1e-5
    assert 0.9 < ratios[0] < 1.1


def test_a_subject_is_a_function_of_seed_and_number_in_every_process():
    code = (
        "from lightning_atlas.data import SimulatedCohort; import hashlib;"
        "from lightning_atlas.data.store.reading import read_case;"
        "s = read_case(SimulatedCohort('spine_mr', 3, 0, 0, seed=5).cases()[2])[0];"
        "print(hashlib.sha256(s['image'].numpy().tobytes() + s['label'].numpy().tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[
        -1
    ]
    cases = SimulatedCohort("spine_mr", 3, 0, 0, seed=5).cases()
    assert digest(read_case(cases[2])[0]) == elsewhere
    others = [*cases[:2], *SimulatedCohort("spine_mr", 3, 0, 0, seed=6).cases()]
    assert len({digest(read_case(case)[0]) for case in others} | {elsewhere}) == 6


@pytest.mark.parametrize("scan", ["abdomen_mr", "spine_ct"])
def test_image_and_label_move_together(scan):
    """The mean intensity under each structure changes much less than it differs between structures."""
    means = []
    for subject in map(whole, (EmbeddedScan(scan).case, SimulatedCohort(scan, 1, 0, 0).cases()[0])):
        image, label = subject.get_image("image").data, subject.get_image("label").data
        means.append([float(image[label == row].mean()) for row in range(2, int(label.max()) + 1)])
    assert np.corrcoef(means)[0, 1] > 0.95


def test_outside_the_scan_is_the_minimum_and_nobody_decided():
    image = torch.full((1, 30, 30, 30), 100.0)
    image[0, 0, 0, 0] = -7.0
    label = torch.full((1, 30, 30, 30), 2, dtype=torch.uint8)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    scan = tio.Subject(
        image=tio.ScalarImage(tensor=image, affine=affine), label=tio.LabelMap(tensor=label, affine=affine)
    )
    zoomed_out = (Variation(0, number, 12.0, "CT")(scan) for number in range(20))
    subject = next(each for each in zoomed_out if (each.get_image("label").data == 0).sum() > 500)
    outside = subject.get_image("label").data == 0
    assert subject.get_image("image").data[outside].mean() < 30
    assert subject.get_image("image").data[~outside].mean() > 60
    assert subject.get_image("label").data.unique().tolist() == [0, 2]


def test_the_larger_cohort_keeps_the_subjects_of_the_smaller():
    small, large = SimulatedCohort("spine_mr", 2, 1, 1), SimulatedCohort("spine_mr", 4, 2, 3)
    assert all(case in large.cases() for case in small.cases())
    assert "simulated cohort (smooth warps of one scan, spine_mr), 4 + 2 + 3 subjects" in large.description
    assert all(case.subject.startswith("simulated-spine_mr-") for case in large.cases())
