from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_atlas.data.augmentation.intensity import (
    Blur,
    Brightness,
    Contrast,
    Gamma,
    Intensity,
    LowResolution,
    Noise,
    blurred,
    coarsened,
    noisy,
    raised,
    stretched,
)

EFFECTS = [Noise(), Blur(), Brightness(), Contrast(), LowResolution(), Gamma()]


@pytest.fixture
def channel():
    return torch.rand(14, 11, 9) * 3 - 1


def drawn(effect, seed=0, channels=1, kept=()):
    """The changes that an effect makes where it is certain."""
    certain = replace(effect, probability=1.0, per_channel=1.0)
    return [change for change in certain.changes(np.random.default_rng(seed), channels, kept) if change]


def settings(effect, name, count=2000):
    """The values that an effect draws, by name."""
    return np.array([drawn(effect, seed)[0].keywords[name] for seed in range(count)])


@pytest.mark.parametrize("sigmas", [(0.5, 0.8, 1.0), (1.0, 1.0, 0.5), (3.0, 2.0, 4.0)])
def test_blur_is_scipys(channel, sigmas):
    reach = [int(np.ceil(4 * sigma)) for sigma in sigmas]
    expected = ndimage.gaussian_filter(channel.double().numpy(), sigmas, mode="mirror", radius=reach)
    np.testing.assert_allclose(blurred(channel, sigmas).numpy(), expected, atol=2e-6)


def test_a_single_plane_is_not_blurred_away():
    flat = torch.rand(6, 6, 1)
    expected = ndimage.gaussian_filter(flat.numpy()[..., 0], 1.0, mode="mirror", radius=4)
    np.testing.assert_allclose(blurred(flat, (1.0, 1.0, 1.0)).numpy()[..., 0], expected, atol=2e-6)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_stretches_about_the_mean_within_the_range(channel, factor):
    values = channel.double().numpy()
    expected = np.clip((values - values.mean()) * factor + values.mean(), values.min(), values.max())
    np.testing.assert_allclose(stretched(channel, factor).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_the_power_between_the_extremes_with_the_old_mean_and_deviation(channel, exponent, inverted):
    values = channel.double().numpy() * (-1 if inverted else 1)
    span = np.ptp(values)
    power = ((values - values.min()) / span) ** exponent * span + values.min()
    power = (power - power.mean()) / power.std() * values.std() + values.mean()
    expected = power * (-1 if inverted else 1)
    np.testing.assert_allclose(raised(channel, exponent, inverted).numpy(), expected, atol=2e-5)


def test_the_two_gammas_differ(channel):
    assert not torch.allclose(raised(channel, 1.5, False), raised(channel, 1.5, True), atol=1e-2)


def test_an_image_of_one_value_stays_as_it_is():
    constant = torch.full((4, 4, 4), 0.25)
    for change in (raised(constant, 1.5, False), raised(constant, 0.7, True), stretched(constant, 1.2)):
        torch.testing.assert_close(change, constant)
    torch.testing.assert_close(blurred(constant, (0.5, 0.7, 1.0)), constant)


@pytest.mark.parametrize("zooms", [(0.5, 0.5, 0.5), (0.77, 0.77, 1.0), (0.01, 0.9, 0.6)])
def test_low_resolution_takes_the_nearest_voxels_and_joins_them_by_lines(channel, zooms):
    expected = channel.numpy()
    kept = [max(1, round(side * zoom)) for side, zoom in zip(channel.shape, zooms, strict=True)]
    for axis, (side, few) in enumerate(zip(channel.shape, kept, strict=True)):
        centres = (np.arange(few) + 0.5) * side / few  # of the larger voxels, from the face
        nearest = np.take(expected, np.floor(centres).astype(int), axis)
        at = np.arange(side) + 0.5
        expected = np.apply_along_axis(lambda line, at=at, centres=centres: np.interp(at, centres, line), axis, nearest)
    np.testing.assert_allclose(coarsened(channel, zooms).numpy(), expected, atol=1e-5)


def test_noise_has_its_deviation_and_is_that_of_its_seed():
    channel = torch.full((40, 40, 40), 2.0)
    noise = noisy(channel, 0.05, 7)
    assert noise.mean().item() == pytest.approx(2, abs=1e-3)
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert torch.equal(noise, noisy(channel, 0.05, 7))
    assert not torch.equal(noise, noisy(channel, 0.05, 8))


def test_noise_is_the_same_in_all_channels():
    one, other = drawn(Noise(), channels=2)
    channel = torch.zeros(5, 5, 5)
    assert torch.equal(one(channel), other(channel))
    one, other = drawn(Blur(), channels=2)
    assert one.keywords["sigmas"] != other.keywords["sigmas"]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
def test_no_change_touches_its_input(effect, channel):
    before = channel.clone()
    change = effect.draw(np.random.default_rng(1), ())
    assert not torch.equal(change(channel), before)
    assert torch.equal(channel, before)


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
def test_as_many_patches_and_channels_change_as_the_probabilities_say(effect):
    found = [effect.changes(np.random.default_rng(seed), 2, ()) for seed in range(4000)]
    assert np.mean([changes[0] is not None for changes in found]) == pytest.approx(
        effect.probability * effect.per_channel, abs=0.02
    )
    assert np.mean([any(each is not None for each in changes) for changes in found]) == pytest.approx(
        effect.probability * (1 - (1 - effect.per_channel) ** 2), abs=0.02
    )


def test_the_defaults_are_those_of_nnunet():
    shares = [(type(each).__name__, each.probability, each.per_channel) for each in Intensity().effects()]
    assert shares == [
        ("Noise", 0.1, 1.0),
        ("Blur", 0.2, 0.5),
        ("Brightness", 0.15, 1.0),
        ("Contrast", 0.15, 1.0),
        ("LowResolution", 0.25, 0.5),
        ("Gamma", 0.1, 1.0),
        ("Gamma", 0.3, 1.0),
    ]
    assert [each.inverted for each in (Intensity().inverted_gamma, Intensity().gamma)] == [True, False]


@pytest.mark.parametrize(
    ("effect", "name", "low", "high"),
    [(Brightness(), "other", 0.75, 1.25), (Contrast(), "factor", 0.75, 1.25), (Gamma(), "exponent", 0.7, 1.5)],
)
def test_half_of_the_factors_are_below_one(effect, name, low, high):
    factors = settings(effect, name)
    assert (factors < 1).mean() == pytest.approx(0.5, abs=0.04)
    assert [factors.min(), factors.max()] == pytest.approx([low, high], abs=0.01)
    assert factors[factors < 1].mean() == pytest.approx((low + 1) / 2, abs=0.02)
    assert factors[factors > 1].mean() == pytest.approx((1 + high) / 2, abs=0.02)


@pytest.mark.parametrize(("limits", "mean"), [((1.2, 1.4), 1.3), ((0.2, 0.6), 0.4)])
def test_factors_on_one_side_of_one_are_even(limits, mean):
    assert settings(Brightness(factor=limits), "other").mean() == pytest.approx(mean, abs=0.02)


def test_widths_deviations_and_shares_of_voxels_are_even_over_their_ranges():
    widths, stds, zooms = settings(Blur(), "sigmas"), settings(Noise(), "std"), settings(LowResolution(), "zooms")
    assert widths.mean(axis=0) == pytest.approx([0.75] * 3, abs=0.02)
    assert [widths.min(), widths.max()] == pytest.approx([0.5, 1.0], abs=0.01)
    assert [stds.min(), stds.mean(), stds.max()] == pytest.approx([0.0, 0.05, 0.1], abs=0.005)
    assert [zooms.min(), zooms.mean(), zooms.max()] == pytest.approx([0.5, 0.75, 1.0], abs=0.02)
    assert np.ptp(zooms, axis=1).max() == 0


def test_low_resolution_leaves_axes_alone_across_which_planes_stay_whole():
    (change,) = drawn(LowResolution(), kept=(2,))
    assert change.keywords["zooms"][2] == 1.0
    assert change.keywords["zooms"][0] < 1


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (Noise, {"std": (0.2, 0.1)}),
        (Blur, {"sigma": (0.0, 1.0)}),
        (Brightness, {"factor": (-0.5, 1.0)}),
        (Contrast, {"probability": 1.5}),
        (LowResolution, {"zoom": (0.5, 1.5)}),
        (Gamma, {"exponent": (0.0, 1.0)}),
        (Gamma, {"per_channel": -1.0}),
    ],
)
def test_settings_out_of_range_are_named(part, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        part(**wrong)
