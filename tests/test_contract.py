import json

import pytest

from lightning_atlas.contract import COMPARED, Contract, differences, lone_sides, side_pairs

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


def test_a_contract_survives_json_whole():
    assert Contract.from_dict(json.loads(CT.to_json())) == CT
    assert Contract.from_dict({}) == Contract()


def test_a_contract_of_another_version_is_refused_by_its_key():
    with pytest.raises(ValueError, match="no colour; its keys are channels"):
        Contract.from_dict({**CT.to_dict(), "colour": "red"})


@pytest.mark.parametrize("key", COMPARED)
def test_each_compared_key_is_told_by_name_and_both_values(key):
    other = {"spacing_mm": [1.5, 1.5, 1.5], "window": [0.5, 99.5], "range": [-1.0, 1.0], "channels": ["T1", "T2"]}
    changed = Contract.from_dict({**CT.to_dict(), key: other.get(key, "another")})
    (found,) = differences(CT, changed)
    assert found.key == key
    assert str(getattr(CT, key)) in str(found)
    assert str(getattr(changed, key)) in str(found)


def test_weights_that_state_nothing_take_any_data_and_data_that_state_nothing_are_told():
    assert differences(Contract(), CT) == []
    silent = differences(CT, Contract())
    assert [each.key for each in silent] == [key for key in COMPARED if key != "channels"]
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
