from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torchio.transforms import Transform

from lightning_atlas.contract import side_pairs
from lightning_atlas.data.augmentation.augment import BatchAugmentation
from lightning_atlas.data.augmentation.intensity import (
    Blur,
    Brightness,
    Contrast,
    Gamma,
    Intensity,
    LowResolution,
    Noise,
)
from lightning_atlas.data.augmentation.spatial import Mirroring, Rotation, Scaling, Spatial
from lightning_atlas.types import Batch

CLASSES = ["kidney_left", "spleen", "kidney_right"]
PAIRS = side_pairs(CLASSES)
SIZE = (12, 10, 8)
STILL = Spatial(Rotation(probability=0.0), Scaling(probability=0.0), Mirroring(probability=0.0))
PLAIN = Intensity(
    Noise(0.0), Blur(0.0), Brightness(0.0), Contrast(0.0), LowResolution(0.0), Gamma(0.0, inverted=True), Gamma(0.0)
)
ALWAYS = BatchAugmentation(
    Spatial(Rotation(probability=1.0), Scaling(probability=1.0)),
    Intensity(
        Noise(1.0),
        Blur(1.0, 1.0),
        Brightness(1.0),
        Contrast(1.0),
        LowResolution(1.0, 1.0),
        Gamma(1.0, inverted=True),
        Gamma(1.0),
    ),
    swap_sides=True,
)


def make_batch(seeds, size=SIZE, channels=2) -> Batch:
    """Each sample's voxels depend on its seed alone."""
    cases = len(seeds)
    drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
    states = torch.tensor([[-1, -1, -1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.int8)
    affine = torch.diag(torch.tensor([1.0, 1.5, 2.0, 1.0]))
    affine[:3, 3] = torch.tensor([-30.0, 20.0, 5.0])
    return Batch(
        image=torch.stack([torch.rand(channels, *size, generator=each) for each in drawn]),
        label=torch.stack([torch.randint(5, size, generator=each, dtype=torch.int16) for each in drawn]),
        states=states.repeat(cases, 1, 1),
        drawn=(states != -1).repeat(cases, 1, 1),
        background=torch.tensor([-1, 0, 0, 0, -1], dtype=torch.int8).repeat(cases, 1),
        spacing_mm=torch.tensor([[1.0, 1.5, 2.0]]).repeat(cases, 1),
        affine=affine.repeat(cases, 1, 1),
        index=torch.arange(cases),
        subject=[f"case {seed}" for seed in seeds],
        seed=torch.tensor(seeds),
    )


def on_gpu(batch) -> Batch:
    moved = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return cast(Batch, moved)


def mirroring(*axes):
    spatial = Spatial(Rotation(probability=0.0), Scaling(probability=0.0), Mirroring(axes, 1.0))
    return BatchAugmentation(spatial, PLAIN, swap_sides=True)


def masks(batch, case=0):
    """For each class the voxels in it."""
    return (batch["states"][case] == 1)[batch["label"][case].long()]


def assert_equal(one, other):
    for key in one:
        same = one[key] == other[key] if isinstance(one[key], list) else torch.equal(one[key], other[key])
        assert same, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_without_probability_a_batch_stays_as_it_is(dtype):
    batch = make_batch([1, 2])
    batch["image"] = batch["image"].to(dtype)
    new = BatchAugmentation(STILL, PLAIN)(batch, SIZE, PAIRS)
    assert new["image"].dtype == dtype
    assert_equal(new, batch)


def test_a_sample_is_the_same_in_any_batch():
    together = ALWAYS(make_batch([5, 6, 2**63 - 1]), SIZE, PAIRS)
    for place, seed in ((2, 2**63 - 1), (0, 5)):
        alone = ALWAYS(make_batch([seed]), SIZE, PAIRS)
        for key in ("image", "label", "states", "drawn", "affine"):
            assert torch.equal(alone[key][0], together[key][place])


def test_another_seed_gives_another_change_of_the_same_patch():
    batch = make_batch([5])
    one = ALWAYS(batch, SIZE, PAIRS)
    other = ALWAYS(Batch(**{**batch, "seed": torch.tensor([6])}), SIZE, PAIRS)
    assert not torch.equal(one["label"], other["label"])


def test_the_given_batch_stays_as_it_is_and_so_does_all_that_does_not_move():
    batch, untouched = make_batch([3, 4]), make_batch([3, 4])
    new = ALWAYS(batch, SIZE, PAIRS)
    assert_equal(batch, untouched)
    for key in ("spacing_mm", "background", "index", "subject", "seed"):
        assert new[key] is batch[key]


def test_one_effect_more_does_not_change_what_the_others_draw():
    spatial = Spatial(Rotation(probability=1.0), Scaling(probability=1.0))
    without = BatchAugmentation(spatial, PLAIN)(make_batch([8]), SIZE, PAIRS)
    brighter = BatchAugmentation(spatial, replace(PLAIN, brightness=Brightness(1.0)))(make_batch([8]), SIZE, PAIRS)
    assert torch.equal(without["label"], brighter["label"])
    factors = (brighter["image"] / without["image"]).mean((2, 3, 4), keepdim=True)
    torch.testing.assert_close(brighter["image"], without["image"] * factors)
    assert (factors != 1).all()


def test_effects_of_a_kind_draw_apart(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lightning_atlas.data.augmentation.intensity.raised",
        lambda channel, exponent, inverted: seen.append((inverted, exponent)) or channel,
    )
    ALWAYS(make_batch([1], channels=1), SIZE, PAIRS)
    (first, negative), (second, positive) = seen
    assert (first, second) == (True, False)
    assert negative != positive


def test_affine_image_and_label_move_together():
    """An image of world coordinates: what the affine says of a voxel is what stands in it."""
    augment = BatchAugmentation(Spatial(Rotation(probability=1.0), Scaling(probability=1.0)), PLAIN)
    size = augment.margin(SIZE, np.array([[1.0, 1.5, 2.0]]))
    batch = make_batch([11, 12, 13], size, channels=3)
    voxels = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij"))
    world = (
        torch.einsum("ab,bijk->aijk", batch["affine"][0][:3, :3], voxels) + batch["affine"][0][:3, 3, None, None, None]
    )
    batch["image"] = world.repeat(3, 1, 1, 1, 1)
    batch["label"] = voxels[0].to(torch.int16).repeat(3, 1, 1, 1)
    new = augment(batch, SIZE, PAIRS)
    assert new["image"].shape == (3, 3, *SIZE)
    inner = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in SIZE), indexing="ij"))
    for case in range(3):
        affine = new["affine"][case]
        expected = torch.einsum("ab,bijk->aijk", affine[:3, :3], inner) + affine[:3, 3, None, None, None]
        torch.testing.assert_close(new["image"][case], expected, rtol=0, atol=1e-3)
        along_i = (expected[0] - batch["affine"][case, 0, 3]) / 1.0
        assert ((new["label"][case] - along_i).abs() <= 0.501).all()


def test_half_precision_gives_what_single_precision_gives():
    batch, half = make_batch([3]), make_batch([3])
    half["image"] = half["image"].half()
    batch["image"] = half["image"].float()
    assert torch.equal(ALWAYS(half, SIZE, PAIRS)["image"], ALWAYS(batch, SIZE, PAIRS)["image"].half())


@pytest.mark.parametrize("axes", [("i",), ("j",), ("k",), ("i", "j", "k")])
def test_a_mirrored_left_kidney_is_a_right_one(axes):
    batch = make_batch([4])
    new = mirroring(*axes)(batch, SIZE, PAIRS)
    before = masks(batch).flip(["ijk".index(axis) for axis in axes])
    assert torch.equal(masks(new), before[..., [2, 1, 0]])
    assert torch.equal(new["states"][0][4], torch.tensor([-1, 0, 0], dtype=torch.int8))
    assert new["drawn"][0][4].tolist() == [False, True, True]


@pytest.mark.parametrize("axes", [("i", "j"), ("j", "k")])
def test_half_a_turn_leaves_the_sides(axes):
    batch = make_batch([4])
    new = mirroring(*axes)(batch, SIZE, PAIRS)
    assert torch.equal(masks(new), masks(batch).flip(["ijk".index(axis) for axis in axes]))


def test_turns_leave_the_sides():
    spatial = Spatial(Rotation((180.0, 180.0, 180.0), probability=1.0), Scaling(), Mirroring(probability=0.0))
    batch = make_batch(list(range(10)))
    new = BatchAugmentation(spatial, PLAIN, swap_sides=True)(batch, SIZE, PAIRS)
    assert torch.equal(new["states"], batch["states"])


def test_margins_hold_what_every_seed_reads():
    augment, spacing = BatchAugmentation(), np.array([[1.0, 1.5, 2.0], [1.0, 1.0, 5.0]])
    largest = augment.margin(SIZE, spacing)
    own = np.array([augment.margin_of(seed, SIZE, spacing[seed % 2]) for seed in range(400)])
    assert (own <= largest).all()
    assert (own >= SIZE).all()
    assert 0.2 < (own > SIZE).any(axis=1).mean() < 0.4
    augment = BatchAugmentation(Spatial(Rotation(probability=1.0), Scaling(probability=1.0)), PLAIN)
    for seed in range(20):
        size = augment.margin_of(seed, SIZE, spacing[0])
        batch = make_batch([seed], size)
        batch["label"] = torch.ones_like(batch["label"])
        assert augment(batch, SIZE, PAIRS)["label"].all()


def test_mirrored_axes_are_those_with_a_chance():
    assert BatchAugmentation().mirrored_axes == ("i", "j", "k")
    assert BatchAugmentation(Spatial(mirroring=Mirroring(("k", "j")))).mirrored_axes == ("j", "k")
    assert BatchAugmentation(Spatial(mirroring=Mirroring(probability=0.0))).mirrored_axes == ()


def test_patches_that_are_too_small_are_told():
    with pytest.raises(ValueError, match=r"\[12, 10, 8\] voxels .* \[12, 11, 8\]"):
        ALWAYS(make_batch([1]), (12, 11, 8), PAIRS)


def test_a_recipe_changes_one_number_and_keeps_the_rest():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augment", type=list[Transform] | BatchAugmentation | None)
    settings = {
        "spatial": {"rotation": {"degrees": [15, 15, 45]}, "mirroring": {"axes": ["i", "j"]}, "keep_planes": True},
        "intensity": {"noise": {"probability": 0.5}, "inverted_gamma": {"probability": 0.2}},
        "swap_sides": True,
    }
    name = "lightning_atlas.data.augmentation.augment.BatchAugmentation"
    parsed = parser.parse_object({"augment": {"class_path": name, "init_args": settings}})
    augment = parser.instantiate(parsed).augment
    assert augment.spatial.rotation == Rotation((15.0, 15.0, 45.0))
    assert augment.spatial.scaling == Scaling()
    assert augment.mirrored_axes == ("i", "j")
    assert augment.spatial.keep_planes
    assert augment.swap_sides
    assert augment.intensity.noise == Noise(0.5)
    assert augment.intensity.inverted_gamma == Gamma(0.2, inverted=True)
    assert augment.intensity.gamma == Gamma()


@pytest.mark.gpu
def test_a_gpu_gives_what_the_processor_gives():
    augment = BatchAugmentation(ALWAYS.spatial, replace(ALWAYS.intensity, noise=Noise(0.0)), swap_sides=True)
    size = augment.margin((48, 40, 32), np.array([[1.0, 1.5, 2.0]]))
    batch = make_batch([1, 2, 3], size)
    here, there = augment(batch, (48, 40, 32), PAIRS), augment(on_gpu(batch), (48, 40, 32), PAIRS)
    assert there["image"].is_cuda
    torch.testing.assert_close(there["image"].cpu(), here["image"], rtol=0, atol=2e-3)
    assert (there["label"].cpu() == here["label"]).float().mean() > 0.9999
    assert torch.equal(there["states"].cpu(), here["states"])


@pytest.mark.gpu
def test_noise_on_a_gpu_is_that_of_its_seed():
    batch = on_gpu(make_batch([1, 2]))
    assert torch.equal(ALWAYS(batch, SIZE, PAIRS)["image"], ALWAYS(batch, SIZE, PAIRS)["image"])
