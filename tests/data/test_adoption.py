from dataclasses import replace

import pytest
import yaml
from jsonargparse import ArgumentParser
from torchio.transforms import (
    Clamp,
    CropOrPad,
    Resample,
    RescaleIntensity,
    Resize,
    ToCanonical,
    ToOrientation,
    Transform,
    ZNormalization,
)

from lightning_atlas.cli.recipes import recipes_folder
from lightning_atlas.contract import PREPROCESSED, Contract, differences
from lightning_atlas.data.adoption import adopt_preprocessing, expected_of
from lightning_atlas.data.air import RescaleAboveAir
from lightning_atlas.data.pipeline import derive_contract
from lightning_atlas.data.store.keys import settings
from lightning_atlas.intake.zoo import entries

STARTER = entries()["starter_abdomen_ct"].contract
WEIGHTS = Contract(
    modality="CT",
    orientation="LPS",
    spacing_mm=(1.5, 1.5, 2.0),
    normalization="window",
    window=(-175.0, 250.0),
    range=(-1.0, 1.0),
)


def adopted(preprocess, weights=WEIGHTS, modality="CT"):
    transforms, changed = adopt_preprocessing(preprocess, derive_contract((), modality, preprocess, []), weights)
    return transforms, changed, derive_contract((), modality, transforms, [])


RECIPES = [
    [],
    [ToCanonical(), Resample(3), Clamp(-200, 300), RescaleIntensity((0, 1), in_min_max=(-200, 300))],
    [RescaleIntensity((0, 1), percentiles=(1, 99)), Resize((8, 8, 8)), ToOrientation("SAR")],
    [ZNormalization(), Resample((1, 2, 3))],
]


@pytest.mark.parametrize("preprocess", RECIPES)
@pytest.mark.parametrize(
    "weights",
    [
        WEIGHTS,
        replace(WEIGHTS, normalization="linear"),
        replace(WEIGHTS, normalization="percentiles", window=(0.5, 99.5)),
        replace(WEIGHTS, normalization="percentiles above air", window=(1.0, 99.0)),
        replace(WEIGHTS, normalization="z-score", window=None, range=None),
        replace(WEIGHTS, orientation="RAS", spacing_mm=(3.0, 3.0, 3.0)),
    ],
    ids=lambda weights: f"{weights.normalization} {weights.orientation}",
)
def test_what_is_adopted_is_what_the_weights_expect(preprocess, weights):
    transforms, _, found = adopted(preprocess, weights)
    assert differences(weights, found) == []
    assert adopted(transforms, weights)[:2] == (transforms, [])


@pytest.mark.parametrize("preprocess", RECIPES)
def test_where_a_scan_has_not_the_windows_units_percentiles_above_air_are_taken_to_the_same_range(preprocess):
    transforms, _, found = adopted(preprocess, WEIGHTS, "MR")
    assert {each.key for each in differences(WEIGHTS, found)} == {"modality", "normalization", "window"}
    assert differences(expected_of(WEIGHTS, "MR"), replace(found, modality="CT")) == []
    (rescaling,) = [each for each in transforms if isinstance(each, RescaleAboveAir)]
    assert (rescaling.percentiles, rescaling.out_min_max) == ((0.5, 99.5), (-1, 1))


def test_the_window_of_a_ct_recipe_stays_where_weights_come_from_photographs():
    photographs = Contract(
        modality="photograph", orientation="LPS", normalization="linear", window=(0.0, 255.0), range=(-2.0, 2.5)
    )
    transforms, _, found = adopted(RECIPES[1], photographs)
    clamp, rescaling = (each for each in transforms if isinstance(each, Clamp | RescaleIntensity))
    assert isinstance(clamp, Clamp)
    assert isinstance(rescaling, RescaleIntensity)
    assert (clamp.out_min, clamp.out_max) == (-200, 300)
    assert (rescaling.in_min_max, rescaling.out_min_max) == ((-200, 300), (-2, 2.5))
    assert {each.key for each in differences(photographs, found)} == {"modality", "normalization", "window"}
    assert adopted(RECIPES[3], photographs)[2].normalization == "percentiles above air"  # z-scores are no window


def test_percentiles_stand_in_only_where_units_differ():
    assert expected_of(WEIGHTS, None) == expected_of(WEIGHTS, "CT") == WEIGHTS
    assert expected_of(replace(WEIGHTS, modality=None), "MR").normalization == "window"
    scaled = replace(WEIGHTS, normalization="z-score")
    assert expected_of(scaled, "MR") == scaled


def test_others_are_kept_in_their_order_and_what_changes_is_told():
    first, last = CropOrPad((10, 10, 10)), CropOrPad((9, 9, 9))
    preprocess = [ToCanonical(), first, Resample(3), RescaleIntensity((0, 1), percentiles=(1, 99)), last]
    transforms, changed, _ = adopted(preprocess)
    names = [type(each).__name__ for each in transforms]
    assert names == ["ToOrientation", "Resample", "CropOrPad", "Clamp", "RescaleIntensity", "CropOrPad"]
    assert [transforms[2], transforms[5]] == [first, last]
    assert changed == [
        "orientation LPS instead of RAS",
        "spacing_mm (1.5, 1.5, 2) instead of (3, 3, 3)",
        "normalization window instead of percentiles",
        "window (-175, 250) instead of (1, 99)",
        "range (-1, 1) instead of (0, 1)",
        "kept: CropOrPad, CropOrPad",
    ]
    assert adopted([])[1][0] == "orientation LPS instead of what the files have"


def test_what_the_weights_do_not_state_stays_as_the_recipe_has_it():
    preprocess = [ToCanonical(), Resample(3), ZNormalization()]
    transforms, changed, found = adopted(preprocess, Contract(modality="CT", spacing_mm=(1.0, 1.0, 1.0)))
    assert (found.orientation, found.spacing_mm, found.normalization) == ("RAS", (1.0, 1.0, 1.0), "z-score")
    assert [transforms[0], transforms[2]] == [preprocess[0], preprocess[2]]
    assert changed == ["spacing_mm (1, 1, 1) instead of (3, 3, 3)"]
    assert adopted(preprocess, Contract(modality="MR"))[:2] == (preprocess, [])


@pytest.mark.parametrize("change", [{"normalization": "histogram"}, {"window": None}, {"range": None}])
def test_what_no_transform_makes_is_refused(change):
    with pytest.raises(ValueError, match=r"the weights expect normalization .*contract: match"):
        adopted([], replace(WEIGHTS, **change))


def recipe_preprocessing(recipe):
    values = yaml.safe_load((recipes_folder() / recipe).read_text(encoding="utf-8"))["data"]["init_args"]
    parser = ArgumentParser()
    parser.add_argument("--preprocess", type=list[Transform])
    parsed = parser.instantiate(parser.parse_object({"preprocess": values["preprocess"]}))
    return parsed.preprocess, "MR" if "mr" in str(values["source"]) else "CT"


@pytest.mark.parametrize(
    "recipe", ["quickstart.yaml", "target/abdomen_mr.yaml", "target/chest_ct.yaml", "target/my_scans.yaml"]
)
def test_the_packaged_recipes_prepare_what_the_starter_weights_expect_already(recipe):
    """So their numbers, and the scans that were prepared for them, are the same with `contract: adopt`."""
    preprocess, modality = recipe_preprocessing(recipe)
    transforms, changed, _ = adopted(preprocess, STARTER, modality)
    assert changed == []
    assert all(ours is theirs for ours, theirs in zip(transforms, preprocess, strict=True))


def test_adopting_from_nothing_writes_the_transforms_as_recipes_do():
    """Prepared scans are found by the transforms' settings, so 3 must not become 3.0."""
    made, _, _ = adopted([], STARTER)
    written, _ = recipe_preprocessing("pretrain/starter_abdomen_ct.yaml")
    assert [settings(each) for each in made] == [settings(each) for each in written]
    assert {each.key for each in differences(Contract(), derive_contract((), "CT", made, []))} == set()
    assert all(getattr(derive_contract((), "CT", made, []), key) == getattr(STARTER, key) for key in PREPROCESSED)
