import csv
import io
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics.meandice import DiceMetric

from lightning_atlas.metrics import CaseDice, DiceResult
from lightning_atlas.types import Prediction

Cases = dict[str, Any]
CLASSES = 3
STATES = torch.tensor(
    [[-1, -1, -1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, -1], [1, 0, 0], [-1, 0, -1], [0, 1, 0]],
    dtype=torch.int8,
)
DRAWN = torch.tensor(
    [[0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]],
    dtype=torch.bool,
)


def random_cases(cases: int, rows: list[int] | None = None) -> Cases:
    choice = torch.tensor(rows or list(range(len(STATES))))
    return {
        "prediction": exclusive(torch.randint(0, CLASSES + 1, (cases, 4, 5, 6))),
        "label": choice[torch.randint(len(choice), (cases, 4, 5, 6))].to(torch.uint8),
        "states": STATES.repeat(cases, 1, 1),
        "drawn": DRAWN.repeat(cases, 1, 1),
        "index": torch.arange(cases),
        "voxel_ml": 0.01 * (1 + torch.arange(cases)),
    }


def exclusive(values: torch.Tensor) -> Prediction:
    """Return 0 as no class and c + 1 as class c."""
    return Prediction(values.to(torch.uint8), torch.eye(CLASSES + 1).bool()[:, 1:].repeat(len(values), 1, 1))


def take(cases: Cases, chosen: list[int]) -> Cases:
    taken = {key: value[chosen] for key, value in cases.items() if key != "prediction"}
    return {**taken, "prediction": Prediction(*(each[chosen] for each in cases["prediction"]))}


def scored(*batches: Cases) -> DiceResult:
    metric = CaseDice(CLASSES)
    for batch in batches:
        metric.update(**batch)
    return metric.compute()


def assert_equal(found: DiceResult, expected: DiceResult) -> None:
    for name in ("index", "dice", "reference_ml", "predicted_ml", "false_positive_ml"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True, rtol=0, atol=0)


def test_the_global_dice_is_that_of_all_cases_laid_side_by_side():
    cases: Cases = {**random_cases(5, rows=[0, 1, 2, 3]), "voxel_ml": torch.full((5,), 0.01)}
    together = {
        "prediction": Prediction(cases["prediction"].rows.reshape(1, 20, 5, 6), cases["prediction"].inside[:1]),
        "label": cases["label"].reshape(1, 20, 5, 6),
        **{name: cases[name][:1] for name in ("states", "drawn", "index", "voxel_ml")},
    }
    expected = scored(together).dice[0]
    assert not expected[:2].isnan().any()
    torch.testing.assert_close(scored(cases).global_dice[:2], expected[:2])
    assert scored(cases).global_dice[2] == 0  # predicted, and in no case


def test_dice_and_volumes_equal_sets_of_voxels():
    cases = random_cases(6)
    cases["label"][2] = 5  # only class 0 was drawn, and is not there
    cases["label"][3][cases["label"][3] == 3] = 1
    cases["label"][4] = 0
    result = scored(cases)
    for case in range(6):
        label, prediction = cases["label"][case].numpy(), cases["prediction"].rows[case].numpy()
        voxel_ml = cases["voxel_ml"][case].item()
        for c in range(CLASSES):
            decided = {tuple(v) for v in np.argwhere(DRAWN[:, c].numpy()[label])}
            truth = {v for v in decided if STATES[label[v], c] == 1}
            predicted = {v for v in decided if prediction[v] == c + 1}
            dice = 2 * len(truth & predicted) / (len(truth) + len(predicted)) if truth else np.nan
            expected = {
                "dice": dice,
                "reference_ml": len(truth) * voxel_ml if decided else np.nan,
                "predicted_ml": len(predicted) * voxel_ml if decided else np.nan,
                "false_positive_ml": len(predicted) * voxel_ml if decided and not truth else np.nan,
            }
            found = {name: getattr(result, name)[case, c].item() for name in expected}
            assert found == pytest.approx(expected, nan_ok=True, rel=1e-6)
    assert result.n.tolist() == [4, 3, 4]


def test_dense_labels_give_the_dice_of_monai():
    cases = random_cases(4, rows=[1, 2, 3, 4])
    cases["label"][1][cases["label"][1] == 3] = 1  # absent from the reference: NaN there too
    reference = DiceMetric(include_background=False, num_classes=CLASSES + 1, reduction="none")
    expected = reference(cases["prediction"].rows.unsqueeze(1), cases["label"].unsqueeze(1).long() - 1)
    torch.testing.assert_close(scored(cases).dice.float(), expected, equal_nan=True)


def test_order_batches_and_repeated_cases_do_not_matter():
    cases = random_cases(5)
    expected = scored(cases)
    assert_equal(scored(take(cases, [3, 0]), take(cases, [4]), take(cases, [2, 1])), expected)
    assert_equal(scored(take(cases, [3, 0, 1]), take(cases, [4, 0, 2]), take(cases, [3])), expected)
    assert expected.index.tolist() == [0, 1, 2, 3, 4]


def test_merging_the_states_of_two_ranks_gives_the_whole_in_either_order():
    cases = random_cases(5)
    for first, second in (([0, 2, 4], [1, 3, 0]), ([1, 3, 0], [0, 2, 4])):
        one, other = CaseDice(CLASSES), CaseDice(CLASSES)
        one.update(**take(cases, first))
        other.update(**take(cases, second))
        one.merge_state(other)
        assert_equal(one.compute(), scored(cases))


def test_a_rank_without_cases_sends_what_the_others_can_receive():
    def sent_by(metric: CaseDice) -> list[tuple[torch.dtype, torch.Size]]:
        sent = []

        def gather(state: torch.Tensor, group: object) -> list[torch.Tensor]:
            sent.append((state.dtype, state.shape[1:]))
            return [state]

        metric.sync(dist_sync_fn=gather, distributed_available=lambda: True)
        metric.unsync()
        return sent

    full, empty = CaseDice(CLASSES), CaseDice(CLASSES)
    full.update(**random_cases(2))
    assert sent_by(empty) == sent_by(full)
    assert len(full.compute().index) == 2


def test_the_mean_is_over_cases_then_classes():
    nan = torch.nan
    dice = torch.tensor([[0.5, 0.2, nan], [nan, 0.4, nan], [nan, 0.9, nan]], dtype=torch.double)
    false_positive = torch.tensor([[nan, nan, 2.0], [0.0, nan, nan], [3.0, nan, 0.0]], dtype=torch.double)
    volume = torch.ones(3, 3, dtype=torch.double)
    result = DiceResult(torch.arange(3), dice, volume, volume, false_positive)
    torch.testing.assert_close(result.per_class(), torch.tensor([0.5, 0.5, nan], dtype=torch.double), equal_nan=True)
    assert result.mean == pytest.approx(0.5)
    assert result.n.tolist() == [1, 3, 0]
    expected = torch.tensor([0.5, nan, 0.5])
    torch.testing.assert_close(result.absent_with_prediction, expected, equal_nan=True)


def test_an_absent_class_has_no_dice_whatever_was_predicted():
    cases = random_cases(2, rows=[1, 2])
    for prediction in (0, 2):
        cases["prediction"].rows[:] = prediction
        result = scored(cases)
        assert result.dice[:, 1].isnan().all()
        assert result.n.tolist() == [2, 0, 0]
        assert result.absent_with_prediction[1] == (prediction == 2)
    torch.testing.assert_close(result.false_positive_ml[:, 1], 120 * cases["voxel_ml"].double())


def test_the_table_is_aligned_ascii_and_its_rows_fit_a_csv_file():
    classes = ["liver", "a_long_name_of_a_class", "kidney"]
    result = scored(random_cases(3))
    lines = result.table(classes).encode("ascii").decode().splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert [line.split()[0] for line in lines[1:5]] == [*classes, "mean"]
    assert f"{result.mean:.4f}" in lines[4]
    file = io.StringIO()
    rows = result.rows(classes)
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    read = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [float(row["dice"]) for row in read] == [*result.per_class().tolist(), result.mean]


def test_no_cases_give_no_score():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        result = CaseDice(CLASSES).compute()
    assert result.dice.shape == (0, CLASSES)
    assert np.isnan(result.mean)


def test_tables_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="expected tables of 2 classes, found 3"):
        CaseDice(2).update(**random_cases(1))
    cases = random_cases(1)
    cases["prediction"] = Prediction(cases["prediction"].rows, cases["prediction"].inside[..., :1])
    with pytest.raises(ValueError, match="expected tables of 3 classes, found 1"):
        CaseDice(3).update(**cases)


def mask_by_mask(cases: Cases, case: int, c: int) -> float:
    """Return the Dice of one class by masks alone."""
    label, prediction = cases["label"][case].long(), cases["prediction"]
    drawn, inside = cases["drawn"][case][label][..., c], cases["states"][case][label][..., c] == 1
    ours, theirs = drawn & inside, drawn & prediction.inside[case][prediction.rows[case].long()][..., c]
    return 2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()) if ours.any() else float("nan")


@pytest.mark.parametrize("combinations", [2, 7, 5000], ids=["few", "some", "more than voxels"])
def test_classes_that_overlap_score_as_each_class_does_alone(combinations: int):
    """A tumour in its organ, in the reference and in the prediction; an untrained network predicts anything."""
    nested = torch.tensor([[-1, -1, -1], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, -1, 1], [-1, 0, 1]], dtype=torch.int8)
    cases = {
        **random_cases(4, rows=list(range(len(nested)))),
        "states": nested.repeat(4, 1, 1),
        "drawn": (nested >= 0).repeat(4, 1, 1),
        "prediction": Prediction(
            torch.randint(combinations, (4, 4, 5, 6), dtype=torch.int16), torch.rand(4, combinations, CLASSES) > 0.5
        ),
    }
    cases["label"][1][cases["label"][1] == 3] = 2  # the tumour is absent
    dice = scored(cases).dice
    expected = [[mask_by_mask(cases, case, c) for c in range(CLASSES)] for case in range(4)]
    torch.testing.assert_close(dice, torch.tensor(expected, dtype=torch.double), equal_nan=True)
    assert dice.isnan().sum() == 1


def test_each_dataset_is_scored_by_its_own_cases():
    cases = random_cases(5)
    datasets = ["b", "a", "b", "c", "a", "never seen"]
    parts = scored(cases).per_dataset(datasets)
    assert list(parts) == ["b", "a", "c"]
    for name, chosen in (("b", [0, 2]), ("a", [1, 4]), ("c", [3])):
        assert_equal(parts[name], scored(take(cases, chosen)))


def test_one_case_of_one_class_keeps_its_axes():
    metric = CaseDice(1)
    cases = random_cases(1)
    one = {name: cases[name][..., :1] for name in ("states", "drawn")}
    metric.update(
        **{**cases, **one, "prediction": Prediction(cases["prediction"].rows, cases["prediction"].inside[..., :1])}
    )
    result = metric.compute()
    assert (result.index.shape, result.dice.shape, len(result.rows(["liver"]))) == ((1,), (1, 1), 2)
