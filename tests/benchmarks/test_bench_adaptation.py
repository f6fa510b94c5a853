"""What the tables of the benchmark hold."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return import_module("bench_adaptation")


def result(arm, planes, seed, rate, score):
    told = {"arm": arm, "head": "copied", "planes": planes, "seed": seed, "rate": rate, "chosen by": score}
    return told | {"warps": score, "warps, copy": 0.5}


def test_a_table_of_what_is_there_leaves_out_rates_that_were_only_tried(benchmark):
    trials = [result("full", 2, 0, rate, score) for rate, score in ((1e-3, 0.1), (5e-3, 0.9), (2.5e-2, 0.3))]
    others = [result("full", 2, 1, 5e-3, 0.7), result("full", 4, 0, 5e-3, 0.8), result("direct", 4, 0, 0.0, 0.0)]
    shown = benchmark.at_best_rates([*trials, *others, result("direct", 2, 0, 0.0, 0.0)])
    assert {(each["arm"], each["rate"]) for each in shown} == {("full", 5e-3), ("direct", 0.0)}
    line = next(line for line in benchmark.table(shown, "warps").splitlines() if line.startswith("full"))
    assert line.split() == ["full", "5.0e-03", "0.800", "[0.700,", "0.900]", "0.800", "[0.800,", "0.800]"]


def test_drawn_planes_of_a_smaller_number_are_among_those_of_a_larger_one(benchmark):
    runs = [benchmark.Run("target/abdomen_mr", "full", "copied", planes, 1, 1, 0.0) for planes in (1, 2, 4, 8)]
    planes = [set(benchmark.drawn_planes(run)) for run in runs]
    assert [len(each) for each in planes] == [1, 2, 4, 8]
    assert planes[0] < planes[1] < planes[2] < planes[3]
    assert planes[3] != set(benchmark.drawn_planes(benchmark.Run("target/abdomen_mr", "full", "copied", 8, 2, 1, 0.0)))
