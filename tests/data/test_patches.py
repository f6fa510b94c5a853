from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchio.transforms import RandomAffine

from lightning_atlas.data import EmbeddedScan, Patches, SimulatedCohort
from lightning_atlas.data.patches import PatchDataset
from lightning_atlas.data.sampling import collate


def opened(data, split="train"):
    data.setup("fit")
    return data.opened[split]


def centres(dataset, number, epoch=0):
    """Where each patch of one voxel lies, in voxels."""
    samples = [dataset[epoch, index] for index in range(number)]
    affine = np.array(dataset.cases[0].prepared.affine)
    return np.array([np.linalg.solve(affine, sample["affine"].numpy())[:3, 3].round() for sample in samples])


def test_balance_by_voxel_follows_the_volumes(spine):
    cases = opened(spine(EmbeddedScan("spine_mr", "train")))
    patches = PatchDataset(cases, Patches((1, 1, 1), per_epoch=400, foreground=1.0, balance="voxel"))
    samples = [patches[0, index] for index in range(400)]
    found = Counter(int((each["states"][each["label"].flatten()[0]] == 1).nonzero()) for each in samples)
    label, states = cases[0].prepared.label(), cases[0].table.states
    volumes = np.array([(states[label, number] == 1).sum() for number in range(3)])
    expected = 400 * volumes / volumes.sum()
    assert [found[number] for number in range(3)] == pytest.approx(expected.tolist(), abs=45)


def test_rare_classes_bring_their_cases(spine):
    """Of three cases one has the cord drawn: a third of the centres is in it, though it is one case of three."""
    cohort = SimulatedCohort("spine_mr", 3, 0, 0)
    others = ["vertebra_disc", "vertebra_articular_surface"]
    data = spine(cohort, classes={"cord": ["spinal_cord"], "disc": ["vertebra_disc"]})
    names = data.cases[0].names
    drawn = tuple(name for name in names if name != "spinal_cord")
    data.cases = [data.cases[0], *(replace(case, drawn=drawn) for case in data.cases[1:])]
    assert set(others) & set(names)
    patches = PatchDataset(opened(data), Patches((1, 1, 1), per_epoch=300, foreground=1.0, balance="rare"))
    samples = [patches[0, index] for index in range(300)]
    inside = Counter(int((each["states"][each["label"].flatten()[0]] == 1).nonzero()) for each in samples)
    assert inside[0] == pytest.approx(150, abs=30)
    assert {each["index"] for each in samples if each["states"][each["label"].flatten()[0], 0] == 1} == {0}


def test_jitter_moves_the_centre_by_no_more_than_told(spine):
    cases = opened(spine(SimulatedCohort("spine_mr", 1, 0, 0)))
    size = (8, 8, 4)
    still = centres(PatchDataset(cases, Patches(size, per_epoch=60, foreground=1.0)), 60)
    moved = centres(PatchDataset(cases, Patches(size, per_epoch=60, foreground=1.0, jitter=1.0)), 60)
    away = np.abs(moved - still)
    assert (away.max(axis=0) <= [4, 4, 2]).all()
    assert (away.mean(axis=0) > [1, 1, 0.3]).all()


def test_a_patch_almost_as_large_as_the_scan_shifts_by_each_voxel_equally_often(spine):
    """As for crops of lung nodules, by -5 to 5 voxels; along an axis that it fills not at all."""
    cases = opened(spine(EmbeddedScan("spine_mr", "train")))
    i, _, k = cases[0].prepared.shape
    patches = Patches((i - 10, 1, k), per_epoch=660, foreground=0.0, anywhere="place")
    starts = centres(PatchDataset(cases, patches), 660)
    found = Counter(starts[:, 0])
    assert set(found) == set(range(11))
    assert all(count == pytest.approx(60, abs=25) for count in found.values())
    assert not starts[:, 2].any()
    assert np.array_equal(starts[:20], centres(PatchDataset(cases, patches), 20))
    assert not np.array_equal(starts[:20], centres(PatchDataset(cases, patches, seed=1), 20))


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_a_patch_for_an_annotated_plane_holds_it(spine, jitter):
    """At least a quarter of the patch's cross-section is annotated, wherever the centre moved."""
    cases = opened(spine(SimulatedCohort("spine_mr", 1, 0, 0, drawn_planes=[20, 40])))
    patches = PatchDataset(cases, Patches((16, 16, 8), per_epoch=100, foreground=0.0, jitter=jitter))
    observed = np.array([(patches[0, index]["label"] != 0).sum() for index in range(100)])
    assert (observed >= 16 * 16 / 4).all()


def test_scribbles_are_found(spine):
    """Observed voxels are few; each patch is centred on one, though most of the scan is unknown."""
    cases = opened(spine(SimulatedCohort("spine_mr", 1, 0, 0, drawn_planes=[20])))
    patches = PatchDataset(cases, Patches((1, 1, 1), per_epoch=50, foreground=0.0))
    assert all(patches[0, index]["label"].item() != 0 for index in range(50))


def test_a_margin_is_cut_cropped_and_leaves_the_patch_where_it_was(spine):
    cases = opened(spine(EmbeddedScan("spine_mr", "train")))
    plain = PatchDataset(cases, Patches((16, 16, 16), per_epoch=20))
    wide = PatchDataset(cases, Patches((16, 16, 16), per_epoch=20, margin=(4, 4, 2)))
    for index in range(20):
        assert torch.equal(wide[0, index]["affine"], plain[0, index]["affine"])
        assert torch.equal(wide[0, index]["image"], plain[0, index]["image"])
        assert torch.equal(wide[0, index]["label"], plain[0, index]["label"])


def test_with_a_margin_turning_leaves_no_empty_corner(spine):
    cases = opened(spine(EmbeddedScan("spine_mr", "train")))
    turn = [RandomAffine(degrees=(30, 30, 0, 0, 0, 0), scales=0)]
    bare = PatchDataset(cases, Patches((24, 24, 24), per_epoch=10), turn)
    wide = PatchDataset(cases, Patches((24, 24, 24), per_epoch=10, margin=(0, 8, 8)), turn)
    unknown = [np.mean([(each[0, n]["label"] == 0).float().mean() for n in range(10)]) for each in (bare, wide)]
    assert unknown[0] > 0.05
    assert unknown[1] < unknown[0] / 3


def test_datasets_come_by_their_shares(spine):
    data = spine(SimulatedCohort("spine_mr", 4, 0, 0))
    data.cases = [replace(case, dataset="few" if n == 0 else "many") for n, case in enumerate(data.cases)]
    patches = PatchDataset(opened(data), Patches((4, 4, 4), per_epoch=40, shares={"few": 3.0, "many": 1.0}))
    chosen = [patches.case_of(5, index) for index in range(40)]
    assert chosen.count(0) == 30
    assert {number: chosen.count(number) for number in (1, 2, 3)} == pytest.approx({1: 3, 2: 3, 3: 3}, abs=1)
    assert all(abs(chosen[:n].count(0) - 0.75 * n) <= 1 for n in range(40))
    with pytest.raises(ValueError, match="check manyy"):
        PatchDataset(patches.cases, Patches((4, 4, 4), shares={"few": 3.0, "many": 1.0, "manyy": 1.0}))
    assert patches[2, 3]["index"] == patches.case_of(2, 3)


def test_smaller_patches_of_a_batch_get_a_rim_and_stay_where_they_were(spine):
    cases = opened(spine(EmbeddedScan("spine_mr", "train")))
    sizes = {0: (16, 16, 16), 1: (20, 16, 18), 2: (16, 24, 16)}
    numbers = iter(range(3))
    patches = PatchDataset(
        cases, Patches((16, 16, 16), per_epoch=3), cut=lambda seed, size, spacing: sizes[next(numbers)]
    )
    plain = PatchDataset(cases, Patches((16, 16, 16), per_epoch=3))
    batch = collate([patches[0, index] for index in range(3)])
    assert batch["image"].shape == (3, 1, 20, 24, 18)
    for index in range(3):
        inner = plain[0, index]
        assert torch.equal(batch["image"][index][:, 2:18, 4:20, 1:17], inner["image"])
        assert torch.equal(batch["label"][index][2:18, 4:20, 1:17], inner["label"])
        corner = batch["affine"][index] @ torch.tensor([2.0, 4.0, 1.0, 1.0])
        assert torch.allclose(corner, inner["affine"][:, 3], atol=1e-4)
    assert (batch["label"][0][:2] == 0).all()
    assert (batch["image"][0][:, :2] == plain[0, 0]["image"].min()).all()


def test_what_a_network_speaks_of_lies_in_the_scan_and_its_surroundings_may_not(spine):
    """A context of 20 voxels at each face: the inner 12 reach every voxel of the scan, as small patches would."""
    cases = opened(spine(EmbeddedScan("spine_mr", "train")))
    small = PatchDataset(cases, Patches((12, 12, 12), per_epoch=60, foreground=0.3))
    large = PatchDataset(cases, Patches((52, 52, 52), per_epoch=60, foreground=0.3), context=20)
    inner = (slice(20, 32),) * 3
    outside = 0
    for index in range(60):
        own, wide = small[0, index], large[0, index]
        assert torch.equal(wide["image"][:, *inner], own["image"])
        assert torch.equal(wide["label"][inner], own["label"])
        corner = wide["affine"] @ torch.tensor([20.0, 20.0, 20.0, 1.0])
        assert torch.allclose(corner, own["affine"][:, 3], atol=1e-4)
        outside += bool((wide["label"] == 0).any())
    assert outside > 30
