import pytest
from torchio.transforms import (
    Clamp,
    Compose,
    Flip,
    OneOf,
    RandomFlip,
    RandomNoise,
    RemapLabels,
    Resample,
    RescaleIntensity,
    ToCanonical,
    ToOrientation,
    ZNormalization,
)

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
        ([ZNormalization()], "z-score", None),
        ([], None, None),
    ],
)
def test_normalization_says_whether_the_window_clips(transforms, normalization, window):
    found = contract(transforms)
    assert (found.normalization, found.window) == (normalization, window)


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


def test_mirroring_left_to_right_is_refused_where_classes_have_sides():
    sided = ("kidney_left", "kidney_right")
    with pytest.raises(ValueError, match=r"kidney_left and kidney_right are two classes.*axes: \[1, 2\]"):
        contract([ToCanonical()], [RandomFlip(0)], sided)
    assert contract([ToCanonical()], [RandomFlip((1, 2))], sided).mirrored_axes == ("j", "k")


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
