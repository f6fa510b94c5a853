import numpy as np
import pytest

from lightning_atlas.cli.run_scores import metrics, read_dice, run_metrics

NAN = float("nan")


def test_the_interval_of_a_mean_is_what_normal_theory_gives_for_many_cases():
    dice = np.random.default_rng(1).normal(0.7, 0.1, (200, 1))
    found = metrics(dice, ["liver"])
    row = found["classes"]["liver"]
    half = 1.96 * dice.std(ddof=1) / np.sqrt(len(dice))
    assert row["dice"] == pytest.approx(dice.mean())
    assert row["low"] == pytest.approx(dice.mean() - half, abs=0.15 * half)
    assert row["high"] == pytest.approx(dice.mean() + half, abs=0.15 * half)
    assert (row["n"], found["cases"]) == (200, 200)


def test_equal_cases_leave_nothing_open():
    row = metrics(np.full((5, 1), 0.8), ["liver"])["mean"]
    assert (row["dice"], row["low"], row["high"]) == pytest.approx((0.8, 0.8, 0.8))


def test_a_single_case_gives_no_interval_and_says_so():
    found = metrics(np.array([[0.5, 0.7]]), ["liver", "spleen"])
    assert found["mean"]["dice"] == pytest.approx(0.6)
    assert all(row["low"] is row["high"] is None for row in (*found["classes"].values(), found["mean"]))
    assert "single case" in found["note"]


def test_absent_classes_do_not_count_and_a_class_of_one_case_has_no_interval():
    found = metrics(np.array([[0.2, NAN, NAN], [0.4, 0.9, NAN], [0.6, NAN, NAN]]), ["a", "b", "c"])
    rows = found["classes"]
    assert [rows[name]["n"] for name in "abc"] == [3, 1, 0]
    assert (rows["b"]["low"], rows["c"]["dice"], rows["c"]["high"]) == (None, None, None)
    assert rows["a"]["dice"] == pytest.approx(0.4)
    assert 0.2 <= rows["a"]["low"] < 0.4 < rows["a"]["high"] <= 0.6
    assert found["mean"]["dice"] == pytest.approx((0.4 + 0.9) / 2)  # over cases, then over classes


def test_a_runs_test_goes_before_its_validation(tmp_path):
    assert run_metrics(tmp_path, ["liver"]) is None
    (tmp_path / "validation_cases.csv").write_text("subject,mean,liver\na,0.1,0.1\n", encoding="utf-8")
    assert (run_metrics(tmp_path, ["liver"]) or {})["split"] == "validation"
    (tmp_path / "cases.csv").write_text("subject,dataset,mean,liver\na,x,0.5,0.5\nb,y,,\n", encoding="utf-8")
    found = run_metrics(tmp_path, ["liver"]) or {}
    assert (found["split"], found["cases"], found["classes"]["liver"]["n"]) == ("test", 2, 1)
    assert np.isnan(read_dice(tmp_path / "cases.csv", ["liver"])[1, 0])
