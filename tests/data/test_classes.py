import itertools

import numpy as np
import pytest

from lightning_atlas.data.classes import map_table, match_classes, mirrored_pair

NAMES = ("rib_left_1", "rib_left_2", "rib_right_1", "liver", "kidney_left", "kidney_right")


def test_patterns_and_names_are_merged_in_the_order_of_the_recipe():
    classes = {"ribs": ["rib_*"], "kidney": ["kidney_left", "kidney_right"]}
    assert match_classes(NAMES, classes) == {"ribs": NAMES[:3], "kidney": NAMES[4:]}


def test_without_classes_each_name_is_one():
    assert match_classes(NAMES, None) == {name: (name,) for name in NAMES}


def test_a_misspelled_name_is_told_with_the_near_ones():
    with pytest.raises(ValueError, match=r"liver: nothing is called 'livr'.*near: liver"):
        match_classes(NAMES, {"liver": ["livr"]})


def test_a_name_in_two_classes_is_refused():
    with pytest.raises(ValueError, match="kidney_left would belong to left and to kidney"):
        match_classes(NAMES, {"left": ["*_left"], "kidney": ["kidney_*"]})


def test_a_word_where_a_list_belongs_is_told():
    with pytest.raises(ValueError, match=r"write liver: \[liver\]"):
        match_classes(NAMES, {"liver": "liver"})


def test_merging_is_what_every_completion_of_the_unknown_says():
    """A merged class is known exactly when all ways to settle the unknown parts agree."""
    rows = np.array(list(itertools.product([-1, 0, 1], repeat=3)), dtype=np.int8)
    drawn = rows != -1
    states, merged_drawn = map_table(rows, drawn, ("a", "b", "c"), {"ab": ("a", "b"), "c": ("c",)})
    for row, merged, seen in zip(rows, states, merged_drawn, strict=True):
        choices = [[0, 1] if part == -1 else [int(part)] for part in row[:2]]
        outcomes = {max(choice) for choice in itertools.product(*choices)}
        assert merged[0] == (outcomes.pop() if len(outcomes) == 1 else -1)
        assert merged[1] == row[2]
        assert seen.tolist() == [bool((row[:2] != -1).all()), bool(row[2] != -1)]


def test_a_part_that_the_case_does_not_know_is_unknown():
    states = np.array([[-1], [0], [1]], dtype=np.int8)
    drawn = np.array([[False], [True], [True]])
    merged, seen = map_table(states, drawn, ("a",), {"ab": ("a", "b"), "b": ("b",)})
    assert merged.tolist() == [[-1, -1], [-1, -1], [1, -1]]
    assert not seen.any()


@pytest.mark.parametrize(
    ("classes", "pair"),
    [
        (["kidney_left", "liver", "kidney_right"], ("kidney_left", "kidney_right")),
        (["right_lung", "left_lung"], ("right_lung", "left_lung")),
        (["kidney", "lung_left"], None),
    ],
)
def test_sides_are_found_by_name(classes, pair):
    assert mirrored_pair(classes) == pair
