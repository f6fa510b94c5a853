"""Simulated subjects: smooth warps without folding and changes of intensity, seeded by the subject's number."""

from dataclasses import dataclass

import numpy as np
import torch
import torchio as tio
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

SHORTEST_HALF_WAVE_MM = 45.0
"""No bump of a warp is narrower than this: about the size of a kidney."""
SQUARINGS = 6
TILT_DEGREES = np.array([2.0, 2.0, 5.0])
"""Largest turns about the left-right, front-back and vertical axis: people lie turned rather than tilted."""
ZOOM = 0.05


@dataclass(frozen=True)
class Variation:
    """Turn one scan into another subject: a pure function of (seed, number).

    The warp integrates a stationary velocity field by scaling and squaring (Arsigny et al. 2006), so it has an inverse
    and does not fold; the field's normal component is zero at the faces of the scan.

    Args:
        seed: Seed of the cohort.
        number: Number of the subject.
        displacement_mm: No voxel is moved farther than this by the warp (the small turn and zoom come on top).
        modality: `CT` keeps Hounsfield units but for noise and a small offset; others change gamma, scale and bias.
    """

    seed: int
    number: int
    displacement_mm: float
    modality: str

    def __call__(self, subject: tio.Subject) -> tio.Subject:
        """Return the other subject on the same grid; what lies outside the scan becomes the minimum, and row 0."""
        random = np.random.default_rng(np.random.SeedSequence([self.seed, self.number]))
        affine = subject.get_image("image").affine
        shape = subject.spatial_shape
        grid = turn(random, affine, warp(random, shape, np.linalg.norm(affine[:3, :3], axis=0), self.displacement_mm))
        image, label = subject.get_image("image").data, subject.get_image("label").data
        edge = 1 + 1 / torch.tensor(shape).sub(1).clamp(min=1)
        outside = (grid.abs() > edge).any(dim=-1)
        warped = sample(image.float(), grid, "bilinear").masked_fill(outside, float(image.min()))
        rows = sample(label.float(), grid, "nearest").masked_fill(outside, 0).to(label.dtype)
        changed = self._intensities(random, warped)
        return tio.Subject(
            image=tio.ScalarImage(tensor=changed, affine=affine), label=tio.LabelMap(tensor=rows, affine=affine)
        )

    def _intensities(self, random: np.random.Generator, image: Float[Tensor, "channels i j k"]) -> Tensor:
        noise = torch.from_numpy(random.standard_normal(image.shape, dtype=np.float32))
        if self.modality == "CT":
            return image + random.uniform(-8, 8) + random.uniform(2, 12) * noise
        low, high = float(image.min()), float(image.max())
        gamma, scale, blur = np.exp(random.uniform(-0.3, 0.3)), random.uniform(0.8, 1.2), random.uniform(0.005, 0.02)
        bias = waves(random, tuple(image.shape[1:]), (2, 2, 2), sine_axis=None)
        bias = torch.exp(0.2 * bias / bias.abs().max())
        unit = ((image - low) / max(high - low, 1e-6)).clamp(0, 1) ** gamma
        return low + (high - low) * (scale * bias * unit + blur * noise).clamp(min=0)


def warp(
    random: np.random.Generator, shape: tuple[int, int, int], spacing_mm: np.ndarray, displacement_mm: float
) -> Float[Tensor, "i j k 3"]:
    """Return for each voxel where its content comes from, in units in which the scan reaches from -1 to 1."""
    half_extent_mm = spacing_mm * np.maximum(np.array(shape) - 1, 1) / 2
    work = tuple(int(np.ceil(each / 2)) + 1 if each > 48 else each for each in shape)
    orders = tuple(int(max(1, 2 * each // SHORTEST_HALF_WAVE_MM)) for each in half_extent_mm)
    velocity_mm = torch.stack([waves(random, work, orders, sine_axis=axis) for axis in range(3)])
    velocity_mm *= random.uniform(0.6, 1.0) * displacement_mm / velocity_mm.norm(dim=0).max().clamp(min=1e-6)
    step = velocity_mm / torch.tensor(half_extent_mm, dtype=torch.float32)[:, None, None, None] / 2**SQUARINGS
    identity = identity_grid(work)
    for _ in range(SQUARINGS):
        step = step + sample(step, identity + step.movedim(0, -1), "bilinear")
    full = F.interpolate(step[None], size=shape, mode="trilinear", align_corners=True)[0]
    return identity_grid(shape) + full.movedim(0, -1)


def waves(
    random: np.random.Generator, shape: tuple[int, ...], orders: tuple[int, ...], sine_axis: int | None
) -> Float[Tensor, "i j k"]:
    """Return random cosines, up to `orders` half waves along each axis; sines (zero at both ends) along one."""
    bases, decay = [], np.ones([1, 1, 1])
    for axis, (size, order) in enumerate(zip(shape, orders, strict=True)):
        frequency = np.arange(1, order + 1) if axis == sine_axis else np.arange(order + 1)
        phase = np.pi * np.linspace(0, 1, size)[:, None] * frequency
        bases.append(np.sin(phase) if axis == sine_axis else np.cos(phase))
        decay = decay * (1 / (1 + (frequency / order) ** 2)).reshape([-1 if each == axis else 1 for each in range(3)])
    weights = random.standard_normal(decay.shape) * decay
    return torch.from_numpy(np.einsum("abc,ia,jb,kc->ijk", weights, *bases, optimize=True).astype(np.float32))


def turn(random: np.random.Generator, affine: np.ndarray, grid: Float[Tensor, "i j k 3"]) -> Float[Tensor, "i j k 3"]:
    """Return the places after a small turn about the scan's centre and a small zoom."""
    angles = np.deg2rad(random.uniform(-1, 1, 3) * TILT_DEGREES)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing_mm
    matrix = axes.T @ rotation(angles) @ axes * (1 + random.uniform(-ZOOM, ZOOM))
    half_extent_mm = spacing_mm * np.maximum(np.array(grid.shape[:3]) - 1, 1) / 2
    matrix = matrix * half_extent_mm / half_extent_mm[:, None]
    return grid @ torch.tensor(matrix.T, dtype=torch.float32)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Return the matrix that turns about the three axes in order."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        single = np.eye(3)
        single[[first, second], [first, second]] = np.cos(angle)
        single[first, second], single[second, first] = -np.sin(angle), np.sin(angle)
        result = single @ result
    return result


def identity_grid(shape: tuple[int, ...]) -> Float[Tensor, "i j k 3"]:
    """Return the place of each voxel's centre; the first and last lie at -1 and 1."""
    lines = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)


def sample(
    volume: Float[Tensor, "channels i j k"] | Integer[Tensor, "channels i j k"],
    grid: Float[Tensor, "i2 j2 k2 3"],
    mode: str,
) -> Float[Tensor, "channels i2 j2 k2"]:
    """Read a volume at the places of a grid; beyond its ends the last voxel goes on."""
    return F.grid_sample(volume[None], grid.flip(-1)[None], mode=mode, padding_mode="border", align_corners=True)[0]
