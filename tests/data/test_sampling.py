import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torchio.transforms import RandomAffine, RandomNoise

from lightning_atlas.data import EmbeddedScan, Patches, SimulatedCohort
from lightning_atlas.data.patches import PatchDataset
from lightning_atlas.data.sampling import AtlasSampler, ShareSampler, collate

WITH_SPAWN = """
import hashlib, json, multiprocessing, sys
import torchio as tio
from lightning_atlas.data import Patches, ScanDataModule, SimulatedCohort

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    data = ScanDataModule(
        SimulatedCohort("spine_mr", 3, 1, 1),
        {"cord": ["spinal_cord"], "articular": ["*_articular_*"], "disc": ["vertebra_disc"]},
        [tio.ToCanonical(), tio.RescaleIntensity((-1, 1), percentiles=(1, 99))],
        [tio.RandomNoise(std=0.05), tio.RandomAffine(degrees=5)],
        Patches((16, 16, 16), per_epoch=12),
        num_workers=1,
    )
    data.setup("fit")
    images = [batch["image"].numpy() for batch in data.train_dataloader()]
    print(json.dumps([hashlib.sha256(image.tobytes()).hexdigest() for image in images]))
"""


def digests(loader):
    return [hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest() for batch in loader]


def opened(data, split="train"):
    data.setup("fit")
    return data.opened[split]


def dataset(data, patches, augment=(), seed=0):
    return PatchDataset(opened(data), patches, augment, seed)


def test_the_number_of_workers_changes_nothing_and_neither_does_the_global_seed(spine):
    found = []
    for workers, seed in ((0, 1), (1, 2), (2, 3)):
        torch.manual_seed(seed)
        data = spine(num_workers=workers)
        data.setup("fit")
        before = torch.get_rng_state()
        found.append(digests(data.train_dataloader()))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 6


def test_workers_by_spawn_give_the_same_batches(spine, tmp_path):
    script = tmp_path / "with spawn é.py"
    script.write_text(WITH_SPAWN, encoding="utf-8")
    elsewhere = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    data = spine()
    data.setup("fit")
    assert json.loads(elsewhere.splitlines()[-1]) == digests(data.train_dataloader())


def test_batches_hold_what_is_stored_in_single_precision(spine):
    cases = opened(spine())
    patches = dataset(spine(augment=None), Patches((16, 16, 16), per_epoch=4))
    samples = [patches[0, index] for index in range(4)]
    batch = collate(samples)
    assert cases[0].prepared.image().dtype == np.float16
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.int16)
    for n, sample in enumerate(samples):
        case = patches.cases[sample["index"]].prepared
        corner = np.rint(np.linalg.solve(np.array(case.affine), sample["affine"].numpy())[:3, 3]).astype(int)
        box = tuple(slice(each, each + 16) for each in corner)
        assert np.array_equal(batch["image"][n], case.image()[:, *box].astype(np.float32))
        assert np.array_equal(batch["label"][n], case.label()[box])


def test_what_is_done_to_a_patch_does_not_reach_the_next(spine):
    patches = dataset(spine(augment=None), Patches((16, 16, 16), per_epoch=4))
    before = {key: patches[0, 1][key].clone() for key in ("image", "label")}
    for key in before:
        patches[0, 1][key].zero_()
    assert all(torch.equal(patches[0, 1][key], before[key]) for key in before)


def test_seed_epoch_and_index_each_change_the_patch(spine):
    data = spine()
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    patches = Patches((16, 16, 16), per_epoch=12)
    images = [dataset(data, patches, [RandomNoise()], seed)[epoch, index]["image"] for seed, epoch, index in keys]
    assert len({image.numpy().tobytes() for image in images}) == len(keys)
    again = dataset(data, patches, [RandomNoise()])[0, 0]["image"]
    assert torch.equal(again, images[0])


@pytest.mark.parametrize("epoch", [0, 5])
def test_every_case_comes_equally_often_in_an_order_of_its_own(spine, epoch):
    patches = dataset(spine(), Patches((4, 4, 4), per_epoch=12))
    order = [patches.case_of(epoch, index) for index in range(12)]
    assert Counter(order) == {0: 4, 1: 4, 2: 4}
    assert order != [patches.case_of(epoch + 1, index) for index in range(12)]


@pytest.mark.parametrize("size", [(16, 16, 16), (80, 20, 70), (68, 67, 52)])
def test_a_patch_is_a_box_of_the_scan_with_padding_where_the_scan_ends(spine, size):
    """Its own affine says where it lies; everything else follows by slicing the whole scan."""
    data = spine()
    patches = dataset(data, Patches(size, per_epoch=12))
    for index in range(6):
        patch = patches[0, index]
        whole = data.whole("train", patch["index"])
        offset = torch.linalg.inv(whole["affine"][0].double()) @ patch["affine"][:, 3].double()
        start = offset[:3].round().int().tolist()
        assert np.allclose(offset[:3], start, atol=1e-3)
        shape = whole["label"].shape[1:]
        padding = [max(0, -first) for first in start]
        boxes = [
            slice(max(0, first), min(first + each, end)) for first, each, end in zip(start, size, shape, strict=True)
        ]
        inside = tuple(slice(gap, gap + box.stop - box.start) for gap, box in zip(padding, boxes, strict=True))
        assert torch.equal(patch["label"][inside], whole["label"][0][tuple(boxes)])
        assert torch.equal(patch["image"][0][inside], whole["image"][0, 0][tuple(boxes)])
        beyond = torch.ones(size, dtype=torch.bool)
        beyond[inside] = False
        assert not patch["label"][beyond].any()
        assert (patch["image"][0][beyond] == whole["image"].min()).all()
        assert beyond.any() == any(each > end for each, end in zip(size, shape, strict=True))


def test_centres_lie_on_every_class_equally_often(spine):
    """A patch of one voxel is its centre; the cord has many times fewer voxels than the disc."""
    patches = dataset(spine(EmbeddedScan("spine_mr", "train")), Patches((1, 1, 1), per_epoch=600, foreground=1.0))
    samples = [patches[0, index] for index in range(600)]
    found = Counter(int((sample["states"][sample["label"].flatten()[0]] == 1).nonzero()) for sample in samples)
    assert sorted(found) == [0, 1, 2]
    assert min(found.values()) > 160


def test_other_centres_lie_anywhere_on_the_annotated_planes(spine):
    source = SimulatedCohort("spine_mr", 1, 0, 0, drawn_planes=[4, 30])
    patches = dataset(spine(source), Patches((1, 1, 1), per_epoch=300, foreground=0.0))
    places = torch.stack([patches[0, index]["affine"][:3, 3] for index in range(300)])
    assert places[:, 2].unique().numel() == 2
    assert places[:, 0].unique().numel() > 50


def test_share_of_foreground_is_as_told(spine):
    patches = dataset(spine(EmbeddedScan("spine_mr", "train")), Patches((1, 1, 1), per_epoch=800, foreground=0.5))
    samples = [patches[0, index] for index in range(800)]
    inside = np.mean([bool((sample["states"][sample["label"].flatten()[0]] == 1).any()) for sample in samples])
    label = patches.cases[0].prepared.label()
    by_chance = (patches.cases[0].table.states[label] == 1).any(axis=-1).mean()
    assert inside == pytest.approx(0.5 + 0.5 * by_chance, abs=0.05)


def test_classes_that_nobody_drew_are_no_centres(spine):
    source = SimulatedCohort("spine_mr", 1, 0, 0, drawn=["spinal_cord"])
    patches = dataset(spine(source), Patches((1, 1, 1), per_epoch=50, foreground=1.0))
    assert all((patches[0, index]["states"][patches[0, index]["label"].flatten()[0], 0] == 1) for index in range(50))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_same_global_batches(spine, ranks):
    patches = dataset(spine(), Patches((4, 4, 4), per_epoch=13))
    shares = [list(AtlasSampler(patches, 4, rank, ranks)) for rank in range(ranks)]
    size = 4 // ranks
    batches = [[key for share in shares for key in share[step * size : (step + 1) * size]] for step in range(3)]
    assert batches == [[(0, index) for index in range(4 * step, 4 * step + 4)] for step in range(3)]
    assert {len(AtlasSampler(patches, 4, rank, ranks)) for rank in range(ranks)} == {3 * size}


def test_a_batch_that_the_ranks_cannot_share_is_refused(spine):
    patches = dataset(spine(), Patches((4, 4, 4), per_epoch=12))
    with pytest.raises(ValueError, match="make it a multiple of 2"):
        AtlasSampler(patches, 3, 0, 2)
    with pytest.raises(ValueError, match="raise per_epoch"):
        AtlasSampler(patches, 16)


def test_a_sampler_starts_in_the_middle_once(spine):
    patches = dataset(spine(), Patches((4, 4, 4), per_epoch=12))
    sampler = AtlasSampler(patches, 4, epoch=3, start=2)
    assert list(sampler) == [(3, index) for index in range(8, 12)]
    sampler.set_epoch(4)
    assert list(sampler) == [(4, index) for index in range(12)]
    assert len(sampler) == 12


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_predictions_are_shared_without_repeating(spine, ranks):
    patches = dataset(spine(), Patches((4, 4, 4), per_epoch=7))
    shares = [ShareSampler(patches, ranks, rank) for rank in range(ranks)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]


def test_a_process_without_a_case_to_predict_is_refused_with_the_way_out(spine):
    patches = dataset(spine(), Patches((4, 4, 4), per_epoch=2))
    with pytest.raises(ValueError, match=r"2 cases for 3 processes: predict with --trainer\.devices 2"):
        ShareSampler(patches, 3, 0)


def test_shorter_tables_are_padded_with_rows_that_mean_unknown(spine):
    data = spine()
    long, short = (dataset(data, Patches((4, 4, 4), per_epoch=12))[0, index] for index in range(2))
    short["states"], short["drawn"] = short["states"][:3], short["drawn"][:3]
    batch = collate([long, short])
    assert torch.equal(batch["states"][0], long["states"])
    assert torch.equal(batch["states"][1, :3], short["states"])
    assert (batch["states"][1, 3:] == -1).all()
    assert not batch["drawn"][1, 3:].any()


def test_augmentation_keeps_rows_and_pads_with_unknown(spine):
    data = spine(EmbeddedScan("spine_mr", "train"))
    patches = dataset(data, Patches((40, 40, 40), per_epoch=4), [RandomAffine(degrees=(40, 40), scales=0)])
    plain = dataset(data, Patches((40, 40, 40), per_epoch=4))
    turned, still = patches[0, 0], plain[0, 0]
    assert set(turned["label"].unique().tolist()) <= set(still["label"].unique().tolist()) | {0}
    assert (turned["label"] == 0).float().mean() > 0.05
    assert turned["label"].dtype == still["label"].dtype == torch.int16
