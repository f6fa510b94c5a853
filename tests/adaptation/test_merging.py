"""Weights between weights: arithmetic against plain sums, choices against all that there were."""

import pytest
import torch

from lightning_atlas.adaptation.merging import (
    SHARES,
    Soup,
    check_alike,
    choose_share,
    greedy_soup,
    interpolated,
    source_state,
)
from lightning_atlas.contract import Contract
from lightning_atlas.intake import SourceWeights


def state(*values):
    return {"weight": torch.tensor(values), "count": torch.tensor(len(values))}


def of_file(network, *classes):
    return SourceWeights(dict(network.state_dict()), Contract(classes=classes), "a file", "0" * 64)


def test_the_ends_are_the_given_weights_to_the_bit(make_toy):
    before, after = make_toy(1).state_dict(), make_toy(2).state_dict()
    for share, wanted in ((0.0, before), (1.0, after)):
        found = interpolated(before, after, share)
        assert list(found) == list(after)
        assert all(torch.equal(each, wanted[name]) for name, each in found.items() if each.is_floating_point())
    counters = [name for name, each in after.items() if not each.is_floating_point()]
    assert counters
    assert all(torch.equal(interpolated(before, after, 0.3)[name], after[name]) for name in counters)


def test_between_them_it_is_linear():
    found = interpolated(state(0.0, 10.0), state(10.0, 0.0), 0.3)["weight"]
    torch.testing.assert_close(found, torch.tensor([3.0, 7.0]))


def test_a_soup_is_the_mean_and_of_equal_weights_the_same_to_the_bit(make_toy):
    states = [make_toy(seed).state_dict() for seed in (1, 2, 3)]
    soup = Soup.of(states[0]).add(states[1])
    mean = soup.add(states[2]).mean()
    for name in ("head.weight", "encoder.0.1.running_var"):
        torch.testing.assert_close(mean[name], torch.stack([each[name] for each in states]).mean(0))
    assert soup.count == 2
    same = Soup.of(states[0]).add(states[0]).add(states[0]).mean()
    assert all(torch.equal(same[name], each) for name, each in states[0].items())


def near(goal):
    return lambda found, merged: -float((found["weight"] - torch.tensor(goal)).abs().sum())


def test_the_best_share_is_taken_and_of_equal_ones_the_largest():
    share, tried = choose_share(state(0.0), state(1.0), near([0.42]))
    assert share == 0.4
    assert [each.name for each in tried] == [f"{each:.1f}" for each in SHARES]
    assert [each.name for each in tried if each.taken] == ["0.4"]
    assert choose_share(state(0.0), state(1.0), lambda found, merged: 0.5)[0] == 1.0


def test_greedy_takes_who_does_not_harm_from_the_best_on():
    runs = {"right": state(3.0), "left": state(-2.0), "best": state(1.0), "equal": state(2.5)}
    soup, tried = greedy_soup(list(runs), runs.__getitem__, near([0.0]))
    assert [(each.name, each.score, each.taken) for each in tried] == [
        ("best", -1.0, True),
        ("left", -2.0, True),
        ("equal", -2.5, True),
        ("right", -3.0, False),
        ("with left", -0.5, True),
        ("with equal", -0.5, True),
        ("with right", -1.125, False),
    ]
    assert soup.mean()["weight"] == 0.5


def test_a_soup_never_scores_lower_than_its_best_run():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        runs = {str(n): {"weight": torch.randn(3, generator=generator)} for n in range(5)}
        goal = torch.randn(3, generator=generator).tolist()
        soup, _ = greedy_soup(list(runs), runs.__getitem__, near(goal))
        assert near(goal)(soup.mean(), True) >= max(near(goal)(each, False) for each in runs.values())


def test_weights_of_other_networks_are_named(make_toy):
    states = {"a": make_toy(1).state_dict(), "b": make_toy(1, width=5).state_dict()}
    with pytest.raises(ValueError, match=r"b has another network than a: decoder\.0\.0\.bias is \(5,\) there"):
        check_alike(states)
    check_alike({"a": states["a"], "b": make_toy(2).state_dict()})


def test_the_source_fills_all_that_it_knows(make_toy):
    tuned, before = make_toy(2), make_toy(1)
    found, kept = source_state(tuned, of_file(before, "liver", "spleen"), ["liver", "spleen"])
    assert kept == []
    assert all(torch.equal(found[name], each) for name, each in before.state_dict().items())


@pytest.mark.parametrize(
    ("classes", "head"),
    [(("liver", "aorta"), "by_name"), (("aorta", "colon"), "by_name"), (("liver", "spleen"), "fresh")],
    ids=["half", "none", "fresh"],
)
def test_a_head_with_new_classes_or_a_fresh_one_is_kept_whole(classes, head, make_toy):
    tuned, before = make_toy(2), make_toy(1)
    wanted = {name: each.clone() for name, each in tuned.state_dict().items()}
    found, kept = source_state(tuned, of_file(before, "liver", "spleen"), classes, head=head)
    assert kept == ["head.weight", "head.bias"]
    for name, each in found.items():
        assert torch.equal(each, wanted[name] if name in kept else before.state_dict()[name])
