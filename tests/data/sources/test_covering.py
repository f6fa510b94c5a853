"""Against all groups of so many patients: none that is smaller has every class."""

from itertools import combinations

import numpy as np
import pytest

from lightning_atlas.data.sources.covering import covering_order


def union(held, patients):
    return frozenset().union(*(held[each] for each in patients))


def some(seed, patients=9, classes=6, share=0.35):
    random = np.random.default_rng(seed)
    names = [f"p{n}" for n in random.permutation(patients)]
    held = {name: frozenset(np.flatnonzero(random.random(classes) < share).astype(str).tolist()) for name in names}
    return names, held


@pytest.mark.parametrize("seed", range(40))
def test_no_smaller_group_has_every_class(seed):
    names, held = some(seed, share=0.2 + seed % 4 * 0.15)
    order, needed = covering_order(names, held)
    everything = union(held, names)
    assert sorted(order) == sorted(names)
    assert union(held, order[:needed]) == everything
    assert not any(union(held, group) == everything for group in combinations(names, needed - 1)) or needed == 0
    assert [each for each in order if each not in order[:needed]] == [
        each for each in names if each not in order[:needed]
    ]


def test_a_group_that_the_greatest_gain_would_miss_is_found():
    held = {"wide": frozenset("abcd"), "left": frozenset("abe"), "right": frozenset("cdf")}
    order, needed = covering_order(list(held), held)
    assert (set(order[:needed]), needed) == ({"left", "right"}, 2)


def test_where_everybody_has_all_the_order_stays():
    names = [f"p{n}" for n in (3, 1, 2)]
    assert covering_order(names, dict.fromkeys(names, frozenset("ab"))) == (names, 1)
    assert covering_order(names, dict.fromkeys(names, frozenset())) == (names, 0)


def test_each_of_the_first_adds_the_most_and_equal_ones_are_taken_as_chance_has_them():
    held = {"a": frozenset("1"), "b": frozenset("234"), "c": frozenset("234"), "d": frozenset("5")}
    assert covering_order(["d", "c", "b", "a"], held) == (["c", "d", "a", "b"], 3)
    assert covering_order(["a", "b", "c", "d"], held) == (["b", "a", "d", "c"], 3)


def test_a_hundred_classes_in_a_thousand_patients_take_a_moment():
    random = np.random.default_rng(0)
    rare = random.random(100) * 0.5 + 0.05
    held = {n: frozenset(np.flatnonzero(random.random(100) < rare).astype(str).tolist()) for n in range(1000)}
    order, needed = covering_order(list(held), held)
    assert union(held, order[:needed]) == union(held, order)
    assert needed <= 15
