import json
from dataclasses import replace
from typing import Any

import pytest

from lightning_atlas.contract import (
    COMPARED,
    FORMAT,
    MAY_DIFFER,
    MAY_LIE_OUTSIDE,
    NEVER,
    SEEN,
    Contract,
    check_allowed,
    differences,
    in_words,
    lone_sides,
    outside,
    side_pairs,
)

CT = Contract(
    classes=("liver", "spleen"),
    modality="CT",
    orientation="RAS",
    spacing_mm=(3.0, 3.0, 3.0),
    normalization="window",
    window=(-200.0, 300.0),
    range=(0.0, 1.0),
    mirrored_axes=("j",),
)
SAW = {
    "seen_spacing_mm": ((0.7, 0.7, 1.0), (0.9, 0.9, 5.0)),
    "seen_extent_mm": ((300.0, 300.0, 200.0), (450.0, 450.0, 600.0)),
    "seen_intensities": (((-180.0, -150.0), (20.0, 40.0), (200.0, 300.0)),),
}


def test_a_contract_survives_json_whole():
    assert Contract.from_dict(json.loads(CT.to_json())) == CT
    assert Contract.from_dict({}) == Contract()
    whole = replace(CT, **SAW)
    assert Contract.from_dict(json.loads(whole.to_json())) == whole


def test_a_contract_of_a_newer_format_says_what_to_do_and_files_without_a_number_load():
    written = CT.to_dict()
    assert written["format"] == FORMAT
    with pytest.raises(ValueError, match=rf"format {FORMAT + 1}.* reads up to {FORMAT}: pip install --upgrade"):
        Contract.from_dict({**written, "format": FORMAT + 1, "colour": "red"})
    assert Contract.from_dict(
        {key: each for key, each in written.items() if key in ("classes", "modality")}
    ) == Contract(classes=CT.classes, modality="CT")


def test_a_contract_of_another_version_is_refused_by_its_key():
    with pytest.raises(ValueError, match="no colour; its keys are axis_order, channels"):
        Contract.from_dict({**CT.to_dict(), "colour": "red"})


@pytest.mark.parametrize("key", COMPARED)
def test_each_compared_key_is_told_by_name_and_both_values(key):
    other = {
        "spacing_mm": [1.5, 1.5, 1.5],
        "window": [0.5, 99.5],
        "range": [-1.0, 1.0],
        "channels": ["T1"],
        "axis_order": "kji",
    }
    changed = Contract.from_dict({**CT.to_dict(), key: other.get(key, "another")})
    (found,) = differences(CT, changed)
    assert found.key == key
    assert in_words(getattr(CT, key)) in str(found)
    assert in_words(getattr(changed, key)) in str(found)
    assert bool(found.forbidden) == (key in NEVER)


def test_weights_that_state_nothing_take_any_data_and_data_that_state_nothing_are_told():
    assert differences(Contract(), CT) == []
    silent = differences(CT, Contract())
    assert [each.key for each in silent] == [key for key in COMPARED if key not in ("channels", "axis_order")]
    assert str(silent[0]) == "modality: the weights expect CT, the data do not say"


def test_rounding_is_no_difference_and_a_hundredth_is():
    near = Contract.from_dict({**CT.to_dict(), "spacing_mm": [3.0, 3.0, 3.002]})
    far = Contract.from_dict({**CT.to_dict(), "spacing_mm": [3.0, 3.0, 3.03]})
    assert differences(CT, near) == []
    assert [each.key for each in differences(CT, far)] == ["spacing_mm"]


def test_other_classes_are_what_transfer_is_for():
    assert differences(CT, Contract.from_dict({**CT.to_dict(), "classes": ["kidney"]})) == []


def test_sides_are_told_by_name():
    classes = [
        "hip_right",
        "liver",
        "left_kidney",
        "hip_left",
        "right_kidney",
        "rib_left_1",
        "rib_left_2",
        "rib_right_2",
    ]
    assert side_pairs(classes) == [(0, 3), (2, 4), (6, 7)]
    assert lone_sides(classes) == ["rib_left_1"]


@pytest.mark.parametrize("classes", [[], ["liver"], ["bright_spot", "cleft"]])
def test_words_that_only_contain_a_side_have_none(classes):
    assert side_pairs(classes) == []
    assert lone_sides(classes) == []


@pytest.mark.parametrize(("weights", "data", "never"), [(1, 1, 0), (1, 3, 0), (2, 2, 0), (2, 1, 1), (2, 3, 1)])
def test_another_number_of_channels_can_be_meant_only_where_the_weights_know_one(weights, data, never):
    one, other = replace(CT, channels=tuple("abc"[:weights])), replace(CT, channels=tuple("xyz"[:data]))
    (found,) = differences(one, other)
    assert bool(found.forbidden) == bool(never)


@pytest.mark.parametrize("key", MAY_DIFFER)
def test_what_may_differ_can_be_allowed(key):
    check_allowed([key])


@pytest.mark.parametrize(("key", "why"), [*NEVER.items(), ("classes", "no 'classes' to allow")])
def test_what_would_be_plainly_wrong_can_never_be_allowed(key, why):
    with pytest.raises(ValueError, match=f"{why}.*can be allowed: modality"):
        check_allowed(["modality", key])


def scan(**changes) -> Any:
    """Return a scan in the middle of what training saw."""
    own = {
        "seen_spacing_mm": ((0.8, 0.8, 2.0),) * 2,
        "seen_extent_mm": ((400.0, 400.0, 400.0),) * 2,
        "seen_intensities": (((-170.0, -170.0), (30.0, 30.0), (250.0, 250.0)),),
    }
    values: dict[str, Any] = {"modality": "CT", **own, **changes}
    return Contract(**values)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("modality", {"modality": "MR"}),
        ("channels", {"channels": ("T1", "T2")}),
        ("channels", {"seen_intensities": scan().seen_intensities * 2}),
        ("spacing_mm", {"seen_spacing_mm": ((0.8, 0.8, 7.6),) * 2}),
        ("spacing_mm", {"seen_spacing_mm": ((0.4, 0.8, 2.0),) * 2}),
        ("extent_mm", {"seen_extent_mm": ((400.0, 400.0, 1800.0),) * 2}),
        ("extent_mm", {"seen_extent_mm": ((400.0, 400.0, 60.0),) * 2}),
        ("intensities", {"seen_intensities": (((850.0, 850.0), (1050.0, 1050.0), (1300.0, 1300.0)),)}),
        ("intensities", {"seen_intensities": (((-170.0, -170.0), (170.0, 170.0), (250.0, 250.0)),)}),
    ],
)
def test_a_scan_outside_of_what_training_saw_is_told_by_its_key(key, changes):
    weights = replace(CT, **SAW)
    assert outside(weights, scan()) == []
    (found,) = outside(weights, scan(**changes))
    assert found.key == key
    assert found.forbidden if key == "channels" else key in MAY_LIE_OUTSIDE
    assert "training saw" in str(found)


def test_what_training_did_not_state_and_files_do_not_say_is_not_looked_at():
    assert outside(CT, scan(seen_spacing_mm=((9.0, 9.0, 9.0),) * 2)) == []
    assert outside(replace(CT, **SAW), scan(modality=None)) == []
    assert outside(replace(CT, **SAW), Contract()) == []


def test_a_little_beyond_the_range_is_inside():
    edge = scan(
        seen_spacing_mm=((0.5, 1.3, 7.4),) * 2,
        seen_extent_mm=((205.0, 670.0, 895.0),) * 2,
        seen_intensities=(((-250.0, -250.0), (110.0, 110.0), (370.0, 370.0)),),
    )
    assert outside(replace(CT, **SAW), edge) == []


def test_what_training_saw_is_taken_from_a_former_contract_only_where_there_is_none():
    former = replace(CT, **SAW, modality="PET")
    assert CT.remembering(former) == replace(CT, **SAW)
    assert CT.remembering(None) == CT
    other = replace(CT, seen_extent_mm=((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)))
    kept = other.remembering(former)
    assert kept.seen_extent_mm == other.seen_extent_mm
    assert [getattr(kept, key) for key in SEEN if key != "seen_extent_mm"] == [SAW[SEEN[0]], SAW[SEEN[2]]]
