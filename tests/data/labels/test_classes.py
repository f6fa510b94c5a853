"""What a table says of the classes is held against every way in which the voxel could be."""

import itertools

import numpy as np
import pytest

from lightning_atlas.data.labels.classes import Classes, ClassMap, match_classes
from lightning_atlas.data.labels.vocabulary import Meaning, containers, load_vocabulary, meaning, overlapping

NAMES = ("rib_left_1", "rib_left_2", "rib_right_1", "liver", "kidney_left", "kidney_right")


def matched(names, classes, vocabulary=None):
    return match_classes([(names, vocabulary)], classes)


def dense(names):
    """The table of a label map in which everything was drawn: unknown, left over, then the names."""
    states = np.zeros((2 + len(names), len(names)), np.int8)
    states[0] = -1
    states[2 + np.arange(len(names)), np.arange(len(names))] = 1
    return states, states >= 0


def test_patterns_and_names_are_merged_in_the_order_of_the_recipe():
    classes = matched(NAMES, {"ribs": ["rib_*"], "kidney": ["kidney_left", "kidney_right"]})
    assert classes.names == ("ribs", "kidney")
    assert classes.atoms["ribs"] == {"rib_left_1", "rib_left_2", "rib_right_1"}
    states, drawn = dense(NAMES)
    table = classes.table(states, drawn, NAMES)
    assert table.states.tolist() == [[-1, -1], [0, 0], [1, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 1]]
    assert table.drawn.tolist() == [[False] * 2] + [[True] * 2] * 7
    assert table.background.tolist() == [-1, 1, 0, 0, 0, 1, 0, 0]


def test_without_classes_each_name_is_one():
    classes = matched(NAMES, None)
    states, drawn = dense(NAMES)
    assert classes.names == NAMES
    assert np.array_equal(classes.table(states, drawn, NAMES).states, states)


def test_a_misspelled_name_is_told_with_the_near_ones():
    with pytest.raises(ValueError, match=r"liver: nothing is called 'livr'.*near: liver"):
        matched(NAMES, {"liver": ["livr"]})


def test_a_name_in_two_exclusive_classes_is_refused():
    both = {"left": ["*_left"], "kidney": ["kidney_*"]}
    with pytest.raises(ValueError, match="kidney_left would belong to left and to kidney"):
        matched(NAMES, both)
    assert matched(NAMES, Classes(both, exclusive=False)).names == ("left", "kidney")


def test_a_word_where_a_list_belongs_is_told():
    with pytest.raises(ValueError, match=r"write liver: \[liver\]"):
        matched(NAMES, {"liver": "liver"})


def test_spellings_of_two_datasets_meet_in_one_class():
    classes = match_classes(
        [(("gallbladder",), "totalsegmentator_v2"), (("Gall Bladder",), "btcv")], {"bladder": ["gallbladder"]}
    )
    for name, vocabulary in (("gallbladder", "totalsegmentator_v2"), ("Gall Bladder", "btcv")):
        table = classes.table(*dense((name,)), (name,), vocabulary)
        assert table.states.tolist() == [[-1], [0], [1]]
        assert table.drawn.tolist() == [[False], [True], [True]]


def test_a_coarse_kidney_is_one_of_the_two_and_no_background():
    names = ("kidney", "liver")
    classes = match_classes(
        [(names, None), (NAMES, None)], {name: [name] for name in ("kidney_left", "kidney_right", "liver")}
    )
    table = classes.table(*dense(names), names)
    assert table.states.tolist() == [[-1, -1, -1], [0, 0, 0], [-1, -1, 0], [0, 0, 1]]
    assert table.drawn.tolist() == [[False] * 3] + [[False, False, True]] * 3
    assert table.background.tolist() == [-1, 1, 0, 0]


def test_an_undivided_kidney_is_exactly_the_merged_class():
    table = match_classes([(("kidney",), None), (NAMES, None)], {"kidney": ["kidney"]}).table(
        *dense(("kidney",)), ("kidney",)
    )
    assert table.states.tolist() == [[-1], [0], [1]]
    assert table.drawn.tolist() == [[False], [True], [True]]


def test_a_part_is_inside_and_says_nothing_of_the_outside():
    names = ("femur_left", "liver")
    classes = match_classes(
        [(names, "abdomenatlas_1.1"), (names, "totalsegmentator_v2")], {"femur": ["femur_left"], "liver": ["liver"]}
    )
    table = classes.table(*dense(names), names, "abdomenatlas_1.1")
    assert table.states[:, 0].tolist() == [-1, -1, 1, 0]
    assert not table.drawn[:, 0].any()
    assert table.background.tolist() == [-1, -1, 0, 0]
    told = classes.undecided(names, "abdomenatlas_1.1")
    assert told == {"femur": "femur_left is only a part of it"}
    equal = match_classes(
        [(names, "abdomenatlas_1.1"), (names, "totalsegmentator_v2")],
        Classes({"femur": ["femur_left"], "liver": ["liver"]}, assume_equal=["femur_left"]),
    )
    assert equal.table(*dense(names), names, "abdomenatlas_1.1").states[:, 0].tolist() == [-1, 0, 1, 0]


def test_two_definitions_may_be_two_classes():
    names = ("femur_left",)
    wanted = Classes({"femur": ["femur_left"], "head": ["femur_left@abdomenatlas"]}, exclusive=False)
    classes = match_classes([(names, "abdomenatlas_1.1"), (names, "totalsegmentator_v2")], wanted)
    assert classes.table(*dense(names), names, "abdomenatlas_1.1").states.tolist() == [[-1, -1], [-1, 0], [1, 1]]
    assert classes.table(*dense(names), names, "totalsegmentator_v2").states.tolist() == [[-1, -1], [0, 0], [1, -1]]


def test_a_tumor_in_a_liver():
    names = ("liver", "liver_tumor")
    states = np.array([[-1, -1], [0, 0], [1, 0], [1, 1], [1, -1]], np.int8)
    drawn = states >= 0
    overlapping_classes = matched(names, Classes(None, exclusive=False))
    assert np.array_equal(overlapping_classes.table(states, drawn, names).states, states)
    exclusive = matched(names, None)
    table = exclusive.table(states, drawn, names)
    assert table.states.tolist() == [[-1, -1], [0, 0], [1, 0], [0, 1], [-1, -1]]
    assert table.background.tolist() == [-1, 1, 0, 0, 0]
    assert exclusive.conflicts(table.states) == []


def test_the_tumors_of_a_kidney_that_nobody_drew():
    names = ("kidney_left", "kidney_right")
    classes = match_classes(
        [(names, None), (("kidney_tumor",), None)],
        Classes({"left": ["kidney_left"], "tumor": ["kidney_tumor"]}, exclusive=False),
    )
    table = classes.table(*dense(names), names)
    assert table.states.tolist() == [[-1, -1], [0, 0], [1, -1], [0, -1]]
    assert not table.drawn[:, 1].any()


def test_what_overlaps_without_nesting_is_told():
    classes = matched(("one", "other"), None)
    states = np.array([[-1, -1], [1, 1]], np.int8)
    assert classes.conflicts(classes.table(states, states >= 0, ("one", "other")).states) == [("one", "other")]


def worlds(meanings, row, atoms):
    """Every set of atoms in which a voxel may be, given what its names say."""
    for choice in itertools.product([False, True], repeat=len(atoms)):
        inside = {atom for atom, chosen in zip(atoms, choice, strict=True) if chosen}
        if any(not overlapping(a, b) for a, b in itertools.combinations(inside, 2)):
            continue
        if any(containers(atom) and not containers(atom) & inside for atom in inside):
            continue
        holds = [bool(each.covers & inside) and not each.without & inside for each in meanings]
        if all(state == -1 or bool(state) == held for state, held in zip(row, holds, strict=True)):
            yield inside


VOCABULARY_CASES = [
    (("kidney_left", "kidney_right", "kidney_tumor"), None),
    (("kidney", "liver"), None),
    (("liver", "spleen", "liver_tumor"), None),
    (("femur_left", "liver"), "abdomenatlas_1.1"),
]


@pytest.mark.parametrize(("names", "vocabulary"), VOCABULARY_CASES)
def test_states_are_what_every_possible_world_agrees_on(names, vocabulary):
    loaded = load_vocabulary(vocabulary) if vocabulary else None
    meanings = [meaning(name, loaded) for name in names]
    atoms = sorted(
        {"kidney_left", "kidney_right", "kidney_tumor", "liver", "liver_tumor"}.union(*(m.covers for m in meanings))
        | {container for each in meanings for atom in each.covers for container in containers(atom)}
    )
    wanted = {atom: frozenset({atom}) for atom in atoms} | {"kidney": frozenset({"kidney_left", "kidney_right"})}
    classes = ClassMap(wanted, exclusive=False)
    rows = np.array(list(itertools.product([-1, 0, 1], repeat=len(names))), np.int8)
    found = classes.table(rows, rows >= 0, names, vocabulary).states
    for row, states in zip(rows, found, strict=True):
        possible = list(worlds(meanings, row, atoms))
        if not possible:
            continue  # names that contradict anatomy
        for name, state in zip(classes.names, states, strict=True):
            outcomes = {bool(wanted[name] & inside) for inside in possible}
            expected = -1 if len(outcomes) == 2 else int(outcomes.pop())
            if state != -1:
                assert state == expected, (row.tolist(), name)
            elif expected != -1:
                # Only chains of exclusion through several undecided names may be left undecided.
                assert (row == -1).any(), (row.tolist(), name)


def test_a_name_without_its_tumor_is_completed_by_it(monkeypatch):
    left_out = {
        "healthy": Meaning(frozenset({"liver"}), without=frozenset({"liver_tumor"})),
        "tumor": Meaning(frozenset({"liver_tumor"}), within=frozenset({"liver"})),
    }
    monkeypatch.setattr(ClassMap, "meaning", lambda self, name, vocabulary: left_out[name])
    classes = ClassMap({"liver": frozenset({"liver"}), "tumor": frozenset({"liver_tumor"})}, exclusive=False)
    states = np.array([[-1, -1], [0, 0], [1, 0], [0, 1], [0, -1]], np.int8)
    table = classes.table(states, states >= 0, ("healthy", "tumor"))
    assert table.states.tolist() == [[-1, -1], [0, 0], [1, 0], [1, 1], [-1, -1]]
    assert table.drawn.tolist() == [[False, False], [True, True], [True, True], [True, True], [False, False]]


def test_merging_is_what_every_completion_of_the_unknown_says():
    """A merged class of names that may overlap is known exactly when all ways to settle the unknown parts agree."""
    rows = np.array(list(itertools.product([-1, 0, 1], repeat=3)), dtype=np.int8)
    classes = match_classes([(("a", "b", "c"), None)], Classes({"ab": ["a", "b"], "c": ["c"]}))
    table = classes.table(rows, rows != -1, ("a", "b", "c"))
    for row, merged, seen in zip(rows, table.states, table.drawn, strict=True):
        choices = [[0, 1] if part == -1 else [int(part)] for part in row[:2]]
        outcomes = {max(choice) for choice in itertools.product(*choices)}
        assert merged[0] == (outcomes.pop() if len(outcomes) == 1 else -1)
        assert merged[1] == row[2]
        assert seen.tolist() == [bool((row[:2] != -1).all()), bool(row[2] != -1)]
