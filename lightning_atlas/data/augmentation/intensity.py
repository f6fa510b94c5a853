"""Random changes of intensities, in float32: nnU-Net's, one channel at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_atlas.data.augmentation.spatial import along_axes

Change = partial[Tensor]
"""Takes one channel (i j k) in float32 and returns it changed."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """One kind of change.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
    """

    probability: float
    per_channel: float

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.per_channel <= 1):
            raise ValueError(f"intensity: probability and per_channel are shares from 0 to 1, found {self}")

    def changes(self, random: np.random.Generator, channels: int, kept: tuple[int, ...]) -> list[Change | None]:
        """Draw the change of each channel of one patch, or `None` where it stays.

        Args:
            random: The numbers of this effect and patch alone.
            channels: How many channels there are.
            kept: Axes across which planes stay whole.
        """
        if random.random() >= self.probability:
            return [None] * channels
        return [self.draw(random, kept) if random.random() < self.per_channel else None for _ in range(channels)]

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw the change of one channel."""
        raise NotImplementedError


@dataclass(frozen=True)
class Noise(Effect):
    """Adds the same Gaussian noise to all channels.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
        std: Least and largest standard deviation, in the units of the image.
    """

    probability: float = 0.1
    per_channel: float = 1.0
    std: Range = (0.0, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("noise: std", self.std, least=0.0)

    def changes(self, random: np.random.Generator, channels: int, kept: tuple[int, ...]) -> list[Change | None]:
        """Draw once for all channels."""
        drawn = random.random() < self.probability
        change = self.draw(random, kept)
        return [change if drawn and random.random() < self.per_channel else None for _ in range(channels)]

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw a standard deviation, and the seed of the voxels."""
        return partial(noisy, std=float(random.uniform(*self.std)), seed=int(random.integers(2**63)))


@dataclass(frozen=True)
class Blur(Effect):
    """Convolves with a Gaussian, of another width along each axis.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
        sigma: Least and largest width in voxels.
    """

    probability: float = 0.2
    per_channel: float = 0.5
    sigma: Range = (0.5, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("blur: sigma", self.sigma, least=0.05)

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw a width for each axis."""
        return partial(blurred, sigmas=tuple(random.uniform(*self.sigma, size=3).tolist()))


@dataclass(frozen=True)
class Brightness(Effect):
    """Multiplies intensities.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
        factor: Least and largest factor; where 1 is between them, half of the factors are below 1.
    """

    probability: float = 0.15
    per_channel: float = 1.0
    factor: Range = (0.75, 1.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("brightness: factor", self.factor, least=0.0)

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw a factor."""
        return partial(torch.mul, other=_about_one(random, self.factor))


@dataclass(frozen=True)
class Contrast(Effect):
    """Stretches intensities about their mean, and clips them to the range that they had.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
        factor: Least and largest factor; where 1 is between them, half of the factors are below 1.
    """

    probability: float = 0.15
    per_channel: float = 1.0
    factor: Range = (0.75, 1.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("contrast: factor", self.factor, least=0.0)

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw a factor."""
        return partial(stretched, factor=_about_one(random, self.factor))


@dataclass(frozen=True)
class LowResolution(Effect):
    """Takes fewer voxels (the nearest) and interpolates linearly between them, the same along all axes.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
        zoom: Least and largest share of the voxels along an axis. Axes across which planes stay whole keep theirs.
    """

    probability: float = 0.25
    per_channel: float = 0.5
    zoom: Range = (0.5, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("low_resolution: zoom", self.zoom, least=0.01)
        if self.zoom[1] > 1:
            raise ValueError(f"low_resolution: zoom is a share of the voxels, at most 1, found {self.zoom}")

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw a share of the voxels."""
        zoom = float(random.uniform(*self.zoom))
        i, j, k = (1.0 if axis in kept else zoom for axis in range(3))
        return partial(coarsened, zooms=(i, j, k))


@dataclass(frozen=True)
class Gamma(Effect):
    """Raises intensities, taken to 0..1, to a power, and restores their range, mean and standard deviation.

    Args:
        probability: Share of the patches that are changed.
        per_channel: Share of the channels that are changed in such a patch.
        exponent: Least and largest power; where 1 is between them, half of the powers are below 1.
        inverted: Change the negative of the image, and take the negative again.
    """

    probability: float = 0.3
    per_channel: float = 1.0
    exponent: Range = (0.7, 1.5)
    inverted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("gamma: exponent", self.exponent, least=0.01)

    def draw(self, random: np.random.Generator, kept: tuple[int, ...]) -> Change:
        """Draw a power."""
        return partial(raised, exponent=_about_one(random, self.exponent), inverted=self.inverted)


@dataclass(frozen=True)
class Intensity:
    """Changes of intensities, in this order.

    Args:
        noise: Gaussian noise.
        blur: Gaussian blur.
        brightness: Factors.
        contrast: Stretches about the mean.
        low_resolution: Fewer voxels.
        inverted_gamma: Powers of the negative image.
        gamma: Powers.
    """

    noise: Noise = field(default_factory=Noise)
    blur: Blur = field(default_factory=Blur)
    brightness: Brightness = field(default_factory=Brightness)
    contrast: Contrast = field(default_factory=Contrast)
    low_resolution: LowResolution = field(default_factory=LowResolution)
    inverted_gamma: Gamma = field(default_factory=partial(Gamma, probability=0.1, inverted=True))
    gamma: Gamma = field(default_factory=Gamma)

    def effects(self) -> Iterator[Effect]:
        """Walk through the effects in the order in which they are applied."""
        yield from (self.noise, self.blur, self.brightness, self.contrast)
        yield from (self.low_resolution, self.inverted_gamma, self.gamma)


def noisy(channel: Float[Tensor, "i j k"], std: float, seed: int) -> Float[Tensor, "i j k"]:
    """Add noise. The voxels of a seed differ between kinds of device, not between two of a kind."""
    generator = torch.Generator(channel.device).manual_seed(seed)
    return torch.randn(channel.shape, generator=generator, device=channel.device).mul_(std).add_(channel)


def blurred(channel: Float[Tensor, "i j k"], sigmas: tuple[float, float, float]) -> Float[Tensor, "i j k"]:
    """Convolve with a Gaussian of these widths in voxels; beyond its faces the image is reflected."""
    weights = [_gaussian_weights(sigma, side) for sigma, side in zip(sigmas, channel.shape, strict=True)]
    return along_axes(channel[None], weights)[0]


def stretched(channel: Float[Tensor, "i j k"], factor: float) -> Float[Tensor, "i j k"]:
    """Stretch about the mean, within the range."""
    low, high = torch.aminmax(channel)
    mean = channel.mean()
    return (channel - mean).mul_(factor).add_(mean).clamp_(low, high)


def coarsened(channel: Float[Tensor, "i j k"], zooms: tuple[float, float, float]) -> Float[Tensor, "i j k"]:
    """Keep the nearest voxels at these shares, and interpolate linearly between them."""
    fewer = [max(1, round(side * zoom)) for side, zoom in zip(channel.shape, zooms, strict=True)]
    kept = F.interpolate(channel[None, None], fewer, mode="nearest-exact")
    return F.interpolate(kept, list(channel.shape), mode="trilinear", align_corners=False)[0, 0]


def raised(channel: Float[Tensor, "i j k"], exponent: float, inverted: bool) -> Float[Tensor, "i j k"]:
    """Raise to a power between minimum and maximum, and give back the mean and the standard deviation."""
    low, high = torch.aminmax(channel)
    mean, std = channel.mean(), channel.std(correction=0)
    share = (high - channel if inverted else channel - low).div_((high - low).clamp(min=1e-7)).pow_(exponent)
    ratio = std / share.std(correction=0).clamp(min=1e-7)
    return share.sub_(share.mean()).mul_(-ratio if inverted else ratio).add_(mean)


def _gaussian_weights(sigma: float, side: int) -> Float[np.ndarray, "{side} {side}"]:
    reach = int(np.ceil(4 * sigma))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    around = np.abs(np.arange(side)[:, None] + offsets)
    period = max(1, 2 * (side - 1))  # the faces are not repeated
    inside = np.minimum(around % period, period - around % period) if side > 1 else np.zeros_like(around)
    weights = np.zeros((side, side))
    np.add.at(weights, (np.arange(side)[:, None], inside), kernel / kernel.sum())
    return weights


def _about_one(random: np.random.Generator, limits: Range) -> float:
    low, high = limits
    below = random.random() < 0.5
    if low < 1 < high:
        low, high = (low, 1.0) if below else (1.0, high)
    return float(random.uniform(low, high))


def _check_range(name: str, limits: Range, least: float) -> None:
    if not least <= limits[0] <= limits[1]:
        raise ValueError(f"intensity: {name} is [least, most], at least {least}, found {list(limits)}")
