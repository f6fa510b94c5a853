import nibabel
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from lightning_atlas.callbacks.overlay import PALETTE, UNKNOWN, Scene, middle, nearest_axes, overlay, paint


def scene(shape=(20, 16, 8), spacing=(2.0, 2.0, 5.0)) -> Scene:
    reference = np.zeros(shape, dtype=int)
    reference[shape[0] // 2 :, shape[1] // 2 :, shape[2] // 2 :] = 1  # the patient's right, front, upper corner
    image = np.random.default_rng(0).normal(size=shape)
    return Scene(image, reference, reference.copy(), spacing)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


@pytest.mark.parametrize("shape", [(20, 16, 8), (40, 40, 3), (8, 8, 90)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.1, 5.0)])
def test_nine_panels_have_the_aspect_of_the_patient(shape, spacing):
    figure = overlay(scene(shape, spacing), ["liver"], "title")
    i, j, k = (side * each for side, each in zip(shape, spacing, strict=True))
    boxes = [axes.get_window_extent() for axes in figure.axes]
    expected = [i / j] * 3 + [i / k] * 3 + [j / k] * 3
    assert [box.width / box.height for box in boxes] == pytest.approx(expected, rel=1e-3)
    per_mm = [box.width / mm for box, mm in zip(boxes, [i] * 6 + [j] * 3, strict=True)]
    assert per_mm == pytest.approx([per_mm[0]] * 9, rel=1e-3)


def test_right_is_at_the_left_front_and_top_at_the_top():
    picture = pixels(overlay(scene(), ["liver"], "title"))
    figure = overlay(scene(), ["liver"], "title")
    height = picture.shape[0]
    corners = {"axial": (0, 0), "coronal": (0, 0), "sagittal": (0, 0)}  # each shows the corner at the left and the top
    for row, name in enumerate(corners):
        image, reference = (figure.axes[3 * row + column].get_window_extent() for column in (0, 1))
        plain, painted = (
            picture[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]
            for box in (image, reference)
        )
        size = np.minimum(plain.shape, painted.shape)
        colour = np.array(to_rgb(PALETTE[0]))
        saturated = np.ptp(painted[: size[0], : size[1]], axis=2) > 0.2
        assert np.linalg.norm(painted[: size[0], : size[1]][saturated].mean(0) - colour) < 0.6
        y, x = np.argwhere(saturated).mean(0) / size[:2]
        assert 0.15 < x < 0.35, name
        assert 0.15 < y < 0.35, name


def test_any_orientation_of_the_file_gives_the_same_scene():
    right = scene()
    for axes, flips in (((2, 1, 0), (1, -1, 1)), ((1, 2, 0), (-1, -1, -1)), ((0, 1, 2), (1, 1, -1))):
        affine = np.eye(4)
        affine[:3, :3] = 0
        for axis, world in enumerate(axes):
            affine[world, axis] = right.spacing_mm[world] * flips[axis]

        def stored(array, axes=axes, flips=flips):
            return np.flip(array.transpose(axes), tuple(axis for axis in range(3) if flips[axis] < 0))

        spacing = tuple(right.spacing_mm[world] for world in axes)
        turned = Scene(stored(right.image), stored(right.reference), stored(right.prediction), spacing).to_ras(affine)
        assert np.array_equal(turned.image, right.image)
        assert np.array_equal(turned.reference, right.reference)
        assert turned.spacing_mm == right.spacing_mm


def test_axes_are_those_that_nibabel_finds():
    random = np.random.default_rng(0)
    for _ in range(50):
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        if np.sort(np.abs(turn), axis=0)[-1].min() < 0.75:  # near 45 degrees the nearest axis is a matter of taste
            continue
        affine = np.eye(4)
        affine[:3, :3] = turn * random.uniform(0.5, 5, 3)
        found = nibabel.orientations.io_orientation(affine)
        axes, backwards = nearest_axes(affine)
        for world in range(3):
            assert found[axes[world]].tolist() == [world, -1 if backwards[world] else 1]


def test_the_planes_shown_have_labels_also_where_few_planes_were_drawn():
    reference = np.full((9, 9, 20), UNKNOWN)
    reference[:, :, [6, 13]] = 0
    reference[2:5, 3:8, [6, 13]] = 1
    i, j, k = middle(reference)
    assert k in (6, 13)
    assert (i, j) == (3, 5)
    assert middle(np.zeros((9, 8, 7), dtype=int)) == (4, 4, 3)


def test_paint_shows_what_is_not_known_and_outlines_what_is_there():
    values = np.zeros((10, 10), dtype=int)
    values[2:8, 2:8] = 1
    values[:, 9] = UNKNOWN
    painted = paint(values, 100, 100)
    assert painted[5, 5, 3] == 0  # background
    assert 0 < painted[50, 50, 3] < painted[20, 50, 3] == 1  # inside, outline
    assert painted[30, 50, :3] == pytest.approx(to_rgb(PALETTE[0]))
    assert (painted[:, 92:, 3] > 0).all()
    assert len(np.unique(painted[:, 92:, 3])) == 2  # hatched


def test_many_classes_are_told_apart():
    side = 8
    reference = np.arange(1, side**2 + 1).reshape(side, side, 1).repeat(2, axis=2)
    each = Scene(np.zeros(reference.shape), reference, reference, (1.0, 1.0, 1.0))
    figure = overlay(each, [f"class {value}" for value in range(1, 65)], "title")
    assert len(figure.legends[0].get_texts()) > 20
    assert pixels(figure).std() > 0.05
    assert len(set(PALETTE)) == 12
