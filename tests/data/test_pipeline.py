import pytest
from torchio.transforms import (
    Affine,
    Clamp,
    Compose,
    Flip,
    OneOf,
    RandomAffine,
    RandomFlip,
    RandomNoise,
    RemapLabels,
    Resample,
    RescaleIntensity,
    ToCanonical,
    ToOrientation,
    Transpose,
    ZNormalization,
)

from lightning_atlas.data.augmentation.augment import BatchAugmentation
from lightning_atlas.data.augmentation.spatial import Mirroring, Spatial
from lightning_atlas.data.pipeline import derive_contract

WINDOW = [Clamp(-160, 240), RescaleIntensity((-1, 1), in_min_max=(-160, 240))]


def contract(preprocess, augment=(), classes=("liver",)):
    return derive_contract(classes, "CT", preprocess, augment)


def test_geometry_and_window_are_read_from_the_transforms():
    found = contract([ToCanonical(), Resample((1.5, 1.5, 3)), *WINDOW])
    assert (found.orientation, found.spacing_mm) == ("RAS", (1.5, 1.5, 3.0))
    assert (found.normalization, found.window, found.range) == ("window", (-160.0, 240.0), (-1.0, 1.0))
    assert (found.classes, found.modality, found.mirrored_axes) == (("liver",), "CT", ())


def test_transforms_inside_a_composition_count():
    assert contract([Compose([ToOrientation("LPS"), Resample(2), *WINDOW])]).orientation == "LPS"


@pytest.mark.parametrize(
    ("transforms", "normalization", "window"),
    [
        ([RescaleIntensity((-1, 1), in_min_max=(-160, 240))], "linear", (-160.0, 240.0)),
        ([Clamp(-100, 240), RescaleIntensity((-1, 1), in_min_max=(-160, 240))], "linear", (-160.0, 240.0)),
        ([RescaleIntensity((-1, 1), in_min_max=(-160, 240)), Clamp(-1, 1)], "window", (-160.0, 240.0)),
        ([RescaleIntensity((0, 1), percentiles=(0.5, 99.5))], "percentiles", (0.5, 99.5)),
        ([Clamp(-500, 400)], "window", (-500.0, 400.0)),
        ([Clamp(-500, 400), ZNormalization()], "z-score", None),
        ([ZNormalization()], "z-score", None),
        ([], None, None),
    ],
)
def test_normalization_says_whether_the_window_clips(transforms, normalization, window):
    found = contract(transforms)
    assert (found.normalization, found.window) == (normalization, window)


def test_a_window_alone_keeps_the_units_of_the_file():
    assert contract([Clamp(-500, 400)]).range == (-500.0, 400.0)
    assert contract([*WINDOW, Clamp(0, 1)]).window == (-160.0, 240.0)


def test_spacing_is_not_told_where_turning_comes_after_it():
    assert contract([Resample((1, 2, 3)), ToCanonical()]).spacing_mm is None
    assert contract([Resample(3), ToCanonical()]).spacing_mm == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("axes", "orientation", "mirrored"),
    [((1, 2), "RAS", ("j", "k")), (("LR",), "RAS", ("i",)), (("lr",), "PIR", ("k",)), (("inferior",), "PIR", ("j",))],
)
def test_mirrored_axes_are_read_from_the_augmentation(axes, orientation, mirrored):
    preprocess = [ToOrientation(orientation)]
    assert contract(preprocess, [OneOf([RandomFlip(axes)])]).mirrored_axes == mirrored


SIDED = ("kidney_left", "kidney_right")
NONE = (0.0, 0.0, 0.0)
TURN = RandomAffine(degrees=(0, 0, 0, 0, 180, 180))


@pytest.mark.parametrize(
    "augment",
    [
        [RandomFlip(0)],
        [RandomFlip(1)],
        [TURN, RandomFlip(1)],
        [TURN, TURN, RandomFlip((1,), flip_probability=1)],
        [Flip((0, 1, 2))],
        [Compose([Flip((0, 1), p=0.5)]), Flip(2)],
        [Flip(0), Flip(0, p=0.5)],
        [OneOf([RandomNoise(), Affine((1, 1, -1), NONE, NONE)])],
        [Transpose()],
    ],
)
def test_a_mirroring_is_refused_where_classes_have_sides(augment):
    """Whichever axis is reversed: half a turn makes a mirroring along j one from left to right."""
    with pytest.raises(ValueError, match=r"kidney_left and kidney_right are two classes.*swap_sides: true"):
        contract([ToCanonical()], augment, SIDED)
    contract([ToCanonical()], augment)


@pytest.mark.parametrize(
    "augment",
    [[TURN], [Flip((0, 1))], [Flip(0), Flip(2)], [Flip((0, 1), p=0.5), TURN], [Affine((-1, 1, -2), NONE, NONE)]],
)
def test_turns_are_no_mirroring(augment):
    assert contract([ToCanonical()], augment, SIDED).mirrored_axes == ()


def test_what_mirrors_is_named():
    with pytest.raises(ValueError, match="RandomFlip, Transpose mirrors"):
        contract([ToCanonical()], [RandomNoise(), RandomFlip(1), Transpose()], SIDED)


def test_a_batched_augmentation_mirrors_where_sides_change_places():
    assert contract([], BatchAugmentation()).mirrored_axes == ("i", "j", "k")
    with pytest.raises(ValueError, match=r"BatchAugmentation mirrors, but kidney_left .*swap_sides: true"):
        contract([], BatchAugmentation(), SIDED)
    assert contract([], BatchAugmentation(swap_sides=True), SIDED).mirrored_axes == ("i", "j", "k")
    still = BatchAugmentation(Spatial(mirroring=Mirroring(probability=0.0)))
    assert contract([], still, SIDED).mirrored_axes == ()


def test_a_class_without_its_other_side_is_not_mirrored():
    alone = (*SIDED, "lung_middle_lobe_right", "bright_spot")
    with pytest.raises(ValueError, match=r"lung_middle_lobe_right would be a lung_middle_lobe_left"):
        contract([], BatchAugmentation(swap_sides=True), alone)
    assert contract([], [], alone).mirrored_axes == ()


@pytest.mark.parametrize(
    ("transform", "advice"),
    [
        (RandomNoise(), "move it to augment"),
        (ToCanonical(p=0.5), "move it to augment"),
        (Flip(0), "without telling the affine"),
        (RemapLabels({1: 2}), "say with `classes`"),
    ],
)
def test_what_must_not_be_prepared_is_refused(transform, advice):
    with pytest.raises(ValueError, match=advice):
        contract([transform])
