import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation as ScipyRotation

from lightning_atlas.data.augmentation.spatial import (
    Mirroring,
    Move,
    Rotation,
    Scaling,
    Spatial,
    enlarged,
    moved,
    voxel_map,
)

NO, ANISOTROPIC = (False, False, False), (0.8, 1.1, 2.5)
MOVES = [
    (Move((20.0, -35.0, 70.0), (1.3, 1.3, 1.3), (True, False, True)), (21, 18, 15)),
    (Move((0.0, 0.0, 25.0), (0.7, 0.7, 1.0)), (11, 14, 9)),
    (Move((10.0, 0.0, 0.0)), (14, 12, 10)),
    (Move((0.0, 0.0, 0.0), (1.2, 1.2, 1.2), (False, True, False)), (13, 12, 11)),
    (Move((0.0, 0.0, 0.0), (0.8, 0.8, 1.0)), (12, 12, 10)),
]


def expected_matrix(move, spacing):
    """By another library: mirror, to millimetres, scale, turn, to voxels."""
    turn = ScipyRotation.from_euler("xyz", move.degrees, degrees=True).as_matrix()
    mirror = np.diag(np.where(move.mirrored, -1, 1))
    return np.diag(1 / np.array(spacing)) @ turn @ np.diag(move.factor) @ np.diag(spacing) @ mirror


def draws(spatial, spacing=(1.0, 1.0, 1.0), count=4000):
    return [spatial.draw(np.random.default_rng(seed), spacing) for seed in range(count)]


@pytest.mark.parametrize(("move", "source"), MOVES)
def test_image_and_label_are_what_scipy_reads_at_the_same_places(move, source):
    size = (12, 12, 10)
    image, label = torch.rand(2, *source) - 0.3, torch.randint(1, 9, source, dtype=torch.int16)
    matrix = expected_matrix(move, ANISOTROPIC)
    offset = (np.array(source) - size) // 2 + (np.array(size) - 1) / 2 - matrix @ ((np.array(size) - 1) / 2)
    new_image, new_label = moved(image, label, move.matrix(ANISOTROPIC), size)
    assert new_label.dtype == label.dtype
    for channel, new_channel in zip(image.double(), new_image, strict=True):
        expected = ndimage.affine_transform(
            channel.numpy(), matrix, offset, size, order=1, mode="grid-constant", cval=channel.min().item()
        )
        torch.testing.assert_close(new_channel.numpy(), expected.astype(np.float32), rtol=0, atol=2e-5)
    # at a place half-way between voxels either neighbour is the nearest, and half a voxel beyond a face is outside
    places = np.moveaxis(np.indices(size), 0, -1) @ matrix.T + offset
    decided = (np.abs(np.abs(places - np.round(places)) - 0.5) > 1e-4).all(axis=-1)
    inside = ((places > -0.5) & (places < np.array(source) - 0.5)).all(axis=-1)
    nearest = np.clip(np.round(places).astype(int), 0, np.array(source) - 1)
    expected = np.where(inside, label.numpy()[tuple(np.moveaxis(nearest, -1, 0))], 0)
    assert decided.mean() > 0.5
    np.testing.assert_array_equal(new_label.numpy()[decided], expected[decided])


def test_a_ball_in_millimetres_stays_a_ball_and_goes_where_it_should():
    spacing, size = np.array([1.0, 1.5, 3.0]), (60, 40, 20)
    millimetres = (np.moveaxis(np.indices(size), 0, -1) - (np.array(size) - 1) / 2) * spacing
    at = np.array([6.0, -8.0, 5.0])
    ball = np.exp(-((millimetres - at) ** 2).sum(-1) / (2 * 6.0**2))
    move = Move((25.0, 40.0, -30.0))
    image, _ = moved(
        torch.tensor(ball, dtype=torch.float32)[None],
        torch.zeros(size, dtype=torch.int16),
        move.matrix((1.0, 1.5, 3.0)),
        size,
    )
    weight = image[0].double().numpy()[..., None] / image.sum().item()
    centre = (weight * millimetres).sum((0, 1, 2))
    turn = ScipyRotation.from_euler("xyz", move.degrees, degrees=True)
    np.testing.assert_allclose(centre, turn.inv().apply(at), atol=0.15)
    offsets = (millimetres - centre).reshape(-1, 3)
    covariance = (offsets * weight.reshape(-1, 1)).T @ offsets
    np.testing.assert_allclose(covariance, 36 * np.eye(3), atol=3)  # the same width in millimetres in all directions


@pytest.mark.parametrize("mirrored", [NO, (True, False, False), (False, True, True), (True, True, True)])
def test_at_rest_and_mirrored_voxels_are_copied(mirrored):
    image, label = torch.randn(2, 9, 8, 7), torch.randint(0, 9, (9, 8, 7), dtype=torch.int16)
    new_image, new_label = moved(image, label, Move(mirrored=mirrored).matrix(ANISOTROPIC), (5, 8, 4))
    axes = [axis for axis in range(3) if mirrored[axis]]
    inner = (slice(2, 7), slice(0, 8), slice(1, 5))
    np.testing.assert_array_equal(new_image[1].numpy(), np.flip(image[1][inner].numpy(), tuple(axes)))
    np.testing.assert_array_equal(new_label.numpy(), np.flip(label[inner].numpy(), tuple(axes)))


def test_what_lies_beyond_is_unknown_and_has_the_least_value():
    image = torch.stack([torch.full((8, 8, 8), 5.0), torch.full((8, 8, 8), 7.0)])
    image[0, 4, 4, 4], image[1, 4, 4, 4] = -2.0, -3.0
    label = torch.ones(8, 8, 8, dtype=torch.int16)
    for move in (Move(factor=(2.0, 2.0, 2.0)), Move(degrees=(45.0, 0.0, 0.0), factor=(2.0, 2.0, 2.0))):
        new_image, new_label = moved(image, label, move.matrix((1.0, 1.0, 1.0)), (8, 8, 8))
        assert new_image[:, 0, 0, 0].tolist() == [-2.0, -3.0]
        assert new_label[0, 0, 0] == 0
        assert new_label[4, 4, 4] == 1


def test_two_quarter_turns_and_a_flip_along_j_are_a_flip_along_i():
    matrix = Move(degrees=(0.0, 0.0, 180.0), mirrored=(False, True, False)).matrix(ANISOTROPIC)
    np.testing.assert_allclose(matrix, np.diag([-1, 1, 1]), atol=1e-12)
    assert np.linalg.det(matrix) < 0
    assert np.linalg.det(Move(mirrored=(True, True, False)).matrix(ANISOTROPIC)) > 0


def test_as_many_patches_move_as_the_probabilities_say():
    found = draws(Spatial())
    turned = np.array([any(move.degrees) for move in found])
    scaled = np.array([move.factor[0] != 1 for move in found])
    assert turned.mean() == pytest.approx(0.2, abs=0.02)
    assert scaled.mean() == pytest.approx(0.2, abs=0.02)
    assert (turned & scaled).mean() == pytest.approx(0.04, abs=0.01)  # nnU-Net draws the two apart
    assert np.mean([move.mirrored for move in found], axis=0) == pytest.approx([0.5] * 3, abs=0.03)
    angles = np.array([move.degrees for move in found])[turned]
    assert np.abs(angles).max() <= 30
    assert angles.std(axis=0) == pytest.approx([30 / np.sqrt(3)] * 3, rel=0.06)  # even over -30 to 30
    factors = np.array([move.factor for move in found])[scaled]
    assert np.ptp(factors, axis=1).max() == 0
    assert [factors.min(), factors.mean(), factors.max()] == pytest.approx([0.7, 1.05, 1.4], abs=0.03)


def test_only_the_named_axes_are_mirrored():
    found = draws(Spatial(mirroring=Mirroring(("j",), 1.0)), count=20)
    assert {move.mirrored for move in found} == {(False, True, False)}


@pytest.mark.parametrize(
    ("spatial", "spacing", "kept", "limits"),
    [
        (Spatial(), (1.0, 1.0, 3.0), (), [30, 30, 30]),
        (Spatial(), (1.0, 1.0, 3.1), (2,), [0, 0, 180]),
        (Spatial(), (5.0, 1.0, 1.0), (0,), [180, 0, 0]),
        (Spatial(in_plane_above=6.0), (5.0, 1.0, 1.0), (), [30, 30, 30]),
        (Spatial(Rotation((5.0, 6.0, 7.0)), keep_planes=True), (1.0, 1.0, 1.0), (2,), [0, 0, 7]),
        (Spatial(keep_planes=True), (1.0, 4.0, 1.0), (1, 2), [0, 0, 0]),
    ],
)
def test_planes_across_a_coarse_axis_stay_whole(spatial, spacing, kept, limits):
    assert spatial.kept_axes(spacing) == kept
    assert spatial.limits(spacing).tolist() == limits
    for move in draws(spatial, spacing, 200):
        matrix = move.matrix(spacing)
        for axis in kept:
            others = [each for each in range(3) if each != axis]
            assert abs(matrix[axis, axis]) == 1
            assert not matrix[axis, others].any()
            assert not matrix[others, axis].any()


@pytest.mark.parametrize("enlarge", [False, True])
def test_plane_sparse_labels_keep_their_planes(enlarge):
    spatial = Spatial(Rotation(probability=0.5), Scaling(probability=0.5), keep_planes=True)
    size, spacing = (24, 24, 20), (1.0, 1.0, 2.0)
    source = spatial.source_size(size, spacing) if enlarge else size
    assert source[2] == size[2]
    label = torch.zeros(source, dtype=torch.int16)
    for plane in range(2, 20, 5):
        label[:, :, plane] = plane
    before, after = 24 * 24 * 4, []
    for move in draws(spatial, spacing, 60):
        _, new = moved(torch.zeros(1, *source), label, move.matrix(spacing), size)
        after.append(int((new > 0).sum()))
        observed = [set(new[:, :, plane].unique().tolist()) - {0} for plane in range(20)]
        assert all(len(each) <= 1 for each in observed)
        order = [each.pop() for each in observed if each]
        assert order == ([17, 12, 7, 2] if move.mirrored[2] else [2, 7, 12, 17])
    assert np.mean(after) == pytest.approx(before, rel=0.2)
    assert not enlarge or set(after) == {before}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), ANISOTROPIC, (1.0, 1.0, 4.0)])
@pytest.mark.parametrize("size", [(20, 20, 20), (15, 31, 8)])
def test_a_patch_cut_large_enough_leaves_nothing_unknown(size, spacing):
    spatial = Spatial(Rotation(probability=1.0), Scaling((1.39, 1.4), probability=1.0))
    source = spatial.source_size(size, spacing)
    most = np.zeros(3)
    for move in draws(spatial, spacing, 2000):
        own = enlarged(size, np.abs(move.matrix(spacing)) @ ((np.array(size) - 1) / 2))
        assert all(a <= b for a, b in zip(own, source, strict=True))
        most = np.maximum(most, own)
    assert (most >= 0.93 * np.array(source) - 2).all()  # no more than that
    label = torch.ones(source, dtype=torch.int16)
    for move in draws(spatial, spacing, 10):
        assert moved(torch.zeros(1, *source), label, move.matrix(spacing), size)[1].all()


def test_without_movement_nothing_more_is_cut():
    still = Spatial(Rotation(probability=0.0), Scaling(probability=0.0))
    assert still.source_size((9, 8, 7), (1.0, 2.0, 3.0)) == (9, 8, 7)
    assert Spatial(Rotation(probability=0.0)).source_size((10, 10, 10), (1.0, 1.0, 1.0)) == (14, 14, 14)


def test_the_map_of_voxels_goes_middle_to_middle():
    whole = voxel_map(Move(mirrored=(True, False, False)).matrix((1.0, 1.0, 1.0)), (10, 8, 8), (4, 8, 8))
    np.testing.assert_allclose(whole @ [0, 0, 0, 1], [6, 0, 0, 1])
    np.testing.assert_allclose(whole @ [3, 7, 7, 1], [3, 7, 7, 1])


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (Rotation, {"degrees": (-1.0, 0.0, 0.0)}),
        (Rotation, {"probability": 1.1}),
        (Scaling, {"factor": (1.2, 0.8)}),
        (Scaling, {"factor": (0.0, 1.0)}),
        (Mirroring, {"probability": -0.1}),
    ],
)
def test_settings_out_of_range_are_named(part, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        part(**wrong)
