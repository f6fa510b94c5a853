import json
import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch

from lightning_atlas import box_metrics
from lightning_atlas.box_metrics import OVERLAPS, RATES, BoxResult, BoxScores, intersection_over_union, judged
from lightning_atlas.types import Boxes


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(box_metrics, "DRAWS", 20)


def boxes(rows, classes=None, scores=None):
    """Boxes from rows of six corners."""
    corners = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
    numbers = torch.tensor(classes if classes is not None else [0] * len(corners), dtype=torch.long)
    return Boxes(corners, numbers, None if scores is None else torch.tensor(scores, dtype=torch.float32))


def cube(start, side=4.0):
    return [start, start, start, start + side, start + side, start + side]


def scored(found, truth, classes=1, planar=False):
    metric = BoxScores(classes, planar)
    metric.update(found, truth, torch.arange(len(found)))
    return metric.compute()


def drawn_at_random(images, seed, classes=2):
    """Boxes of each image and predictions near them, many of one score."""
    generator = torch.Generator().manual_seed(seed)

    def some(count, near=None):
        low = torch.rand(count, 3, generator=generator) * 20 if near is None else near + torch.rand(count, 3) * 2
        return torch.cat([low, low + 4 + torch.rand(count, 3, generator=generator) * 4], 1)

    torch.manual_seed(seed)
    found, truth = [], []
    for _ in range(images):
        real = some(int(torch.randint(0, 4, (), generator=generator)))
        kinds = torch.randint(0, classes, (len(real),), generator=generator)
        close = torch.cat([real + torch.rand(len(real), 6) * share for share in (0.3, 1.5, 3.0)] + [some(3)])
        labels = torch.cat([kinds, kinds, kinds, torch.randint(0, classes, (3,), generator=generator)])
        found.append(Boxes(close, labels, torch.rand(len(close), generator=generator)))
        truth.append(Boxes(real, kinds))
    return found, truth


def slow_overlap(one, other):
    """Count the small cells that both, and that either, hold."""
    cells = (np.indices((24, 24, 24)).reshape(3, -1).T + 0.5) / 2
    inside = [np.all((cells > box[:3]) & (cells < box[3:]), axis=1) for box in (np.array(one), np.array(other))]
    return (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()


def test_overlap_is_that_of_counted_cells_and_touching_boxes_have_none():
    rows = [[0, 0, 0, 4, 4, 4], [1, 2, 0, 5, 6, 3], [4, 0, 0, 8, 4, 4], [0.5, 0.5, 0.5, 3, 9, 2]]
    table = torch.tensor(rows, dtype=torch.float32)
    found = intersection_over_union(table, table)
    for one, other in combinations(range(4), 2):
        assert found[one, other].item() == pytest.approx(slow_overlap(rows[one], rows[other]), abs=1e-6)
    assert found[0, 2] == 0.0
    assert torch.equal(found.diagonal(), torch.ones(4))


def test_in_the_plane_the_depth_of_a_box_says_nothing():
    one, other = boxes([[0, 0, 0, 4, 4, 9]]).corners, boxes([[0, 0, 4, 4, 2, 5]]).corners
    assert intersection_over_union(one, other, planar=True).item() == pytest.approx(0.5)
    assert intersection_over_union(one, other).item() == pytest.approx(8 / 144)


def test_half_an_overlap_is_enough():
    facts = judged(boxes([[0, 0, 0, 4, 4, 2]], scores=[0.5]), boxes([[0, 0, 0, 4, 4, 4]]))
    assert facts[0, 2:5].tolist() == [1, 0, 1]


def test_published_counting_forgives_repetition_and_lets_one_box_find_two_lesions():
    """Two lesions that one box covers both by half; the box comes again, and a stray one; by hand."""
    lesions = boxes([[0, 0, 0, 8, 4, 4], [2, 0, 0, 10, 4, 4]])
    over_both = [1, 0, 0, 9, 4, 4]
    found = boxes([over_both, over_both, cube(20.0)], scores=[0.9, 0.8, 0.7])
    facts = judged(found, lesions)
    assert facts[:, 2].tolist() == [2, 0, 0]
    assert facts[:, 3].tolist() == [0, 0, 1]
    assert facts[:, 4].tolist() == [1, 1, 0]


def test_a_third_box_on_two_found_lesions_is_false_only_in_the_strict_counting():
    lesions = boxes([cube(0.0)])
    facts = judged(boxes([cube(0.0), cube(0.0)], scores=[0.9, 0.8]), lesions)
    assert facts[:, 2:5].tolist() == [[1, 0, 1], [0, 0, 0]]
    result = scored([boxes([cube(0.0), cube(0.0)], scores=[0.8, 0.9])], [boxes([cube(0.0), cube(9.0)])])
    assert result.overall()["froc"] == pytest.approx(0.5)
    assert result.overall()["strict_at_0.5"] == pytest.approx(0.5)  # the second comes after the first


def test_a_box_of_another_class_finds_nothing():
    result = scored([boxes([cube(0.0)], [1], [0.9])], [boxes([cube(0.0)], [0])], classes=2)
    assert result.per_output()["froc"][0] == 0.0
    assert math.isnan(result.per_output()["froc"][1])  # the reference has none of it
    assert result.mean == 0.0


def test_sensitivity_between_two_images_by_hand():
    """Scores fall: found, stray, found, stray, stray, found; two images, four lesions."""
    first = boxes([cube(0.0), cube(30.0), cube(10.0)], scores=[0.9, 0.8, 0.7])
    second = boxes([cube(40.0), cube(50.0), cube(0.0)], scores=[0.6, 0.5, 0.4])
    truth = [boxes([cube(0.0), cube(10.0), cube(20.0)]), boxes([cube(0.0)])]
    each = scored([first, second], truth).overall()
    # One false box on two images is a rate of 0.5, two are 1.
    expected = {"froc_at_0.5": 2 / 4, "froc_at_1": 2 / 4, "froc_at_2": 3 / 4, "froc_at_4": 3 / 4}
    assert {name: each[name] for name in expected} == pytest.approx(expected)
    assert each["froc"] == pytest.approx(2.5 / 4)
    # COCO: precision 1 up to recall 1/4, 2/3 up to 2/4, 3/6 up to 3/4, nothing beyond.
    assert each["ap50"] == pytest.approx((26 * 1 + 25 * 2 / 3 + 25 * 0.5) / 101)


@pytest.mark.parametrize(
    ("at_rates", "mean"),
    [((79.60, 85.29, 89.61, 92.45), 86.74), ((76.12, 83.69, 88.76, 92.30), 85.22)],
    ids=["MP3D", "MULAN"],
)
def test_published_means_follow_from_their_four_sensitivities(at_rates, mean):
    """Of 10,000 lesions in as many images, found and false boxes in the order that makes the published curve."""
    images, facts, done, false = 10_000, [], 0, 0
    for sensitivity, rate in zip(at_rates, RATES, strict=True):
        hits, strays = round(sensitivity * 100) - done, round(rate * images) + 1 - false
        facts += [[1, 0, 1]] * hits + [[0, 1, 0]] * strays
        done, false = done + hits, false + strays
    table = torch.zeros(len(facts), 4 + len(OVERLAPS))
    table[:, 2:5] = torch.tensor(facts, dtype=torch.float32)
    table[:, 1] = torch.arange(len(facts), 0, -1)
    case = torch.zeros(len(facts), dtype=torch.long)
    each = BoxResult(torch.arange(images), torch.ones(images, 1, dtype=torch.long), case, table).overall()
    assert [100 * each[f"froc_at_{rate:g}"] for rate in RATES] == pytest.approx(at_rates, abs=1e-6)
    assert round(100 * each["froc"], 2) == mean


def test_average_precision_is_that_of_monai():
    found, truth = drawn_at_random(30, seed=1)
    ours = scored(found, truth, classes=2).per_output()
    corners, classes, scores, true_corners, true_classes = (
        [np.asarray(getattr(each, name)) for each in side]
        for side, name in (
            (found, "corners"),
            (found, "classes"),
            (found, "scores"),
            (truth, "corners"),
            (truth, "classes"),
        )
    )
    ignored = [np.zeros(len(each.classes), dtype=bool) for each in truth]

    def overlap(one, other):
        return intersection_over_union(torch.as_tensor(one), torch.as_tensor(other)).numpy()

    referee = COCOMetric(["a", "b"], iou_list=OVERLAPS, iou_range=(0.5, 0.95, 0.05), max_detection=[100])
    rows = matching_batch(
        overlap,
        referee.get_iou_thresholds(),
        corners,
        classes,
        scores,
        true_corners,
        true_classes,
        ignored,
        max_detections=100,
    )
    theirs = referee(rows)[0]
    assert np.mean(ours["ap50"]) == pytest.approx(theirs["AP_IoU_0.50_MaxDet_100"], abs=1e-6)
    assert np.mean(ours["ap"]) == pytest.approx(theirs["mAP_IoU_0.50_0.95_0.05_MaxDet_100"], abs=1e-6)
    assert 0.1 < np.mean(ours["ap"]) < np.mean(ours["ap50"]) < 0.95  # neither all nor nothing


def test_curves_are_those_of_a_naive_walk_down_the_scores():
    found, truth = drawn_at_random(20, seed=3, classes=1)
    ranked = sorted(
        ((score, n, box) for n, each in enumerate(found) for score, box in zip(each.scores, each.corners, strict=True)),
        key=lambda row: -float(row[0]),
    )
    total = sum(len(each.corners) for each in truth)
    curves = {}
    for strict in (False, True):
        hit, right, wrong, points = set(), 0, 0, [(0.0, 0.0)]
        for _, n, box in ranked:
            values = [slow_iou(box, each) for each in truth[n].corners]
            covered = [(value, place) for place, value in enumerate(values) if value >= 0.5]
            open_ = [(value, place) for value, place in covered if (n, place) not in hit]
            chosen = [max(open_)] if strict and open_ else open_
            hit |= {(n, place) for _, place in chosen}
            right += len(chosen)
            wrong += (not chosen) if strict else (not covered)
            points.append((wrong / len(found), right / total))
        curves[strict] = [max(y for x, y in points if x <= rate) for rate in RATES]
    each = scored(found, truth).overall()
    assert [each[f"froc_at_{rate:g}"] for rate in RATES] == pytest.approx(curves[False])
    assert [each[f"strict_at_{rate:g}"] for rate in RATES] == pytest.approx(curves[True])
    assert curves[False] != curves[True]


def slow_iou(one, other):
    low, high = torch.maximum(one[:3], other[:3]), torch.minimum(one[3:], other[3:])
    shared = (high - low).clamp(min=0).prod()
    return float(shared / ((one[3:] - one[:3]).prod() + (other[3:] - other[:3]).prod() - shared))


def test_boxes_of_one_score_count_together_in_whatever_order_they_come():
    truth = [boxes([cube(0.0)]), boxes([cube(0.0)])]
    stray, hit = boxes([cube(9.0)], scores=[0.5]), boxes([cube(0.0)], scores=[0.5])
    one, other = scored([stray, hit], truth), scored([hit, stray], truth)
    assert one.overall() == pytest.approx(other.overall())


def test_nothing_found_and_nothing_there():
    none = boxes([], scores=[])
    result = scored([none, none], [boxes([cube(0.0)]), boxes([])])
    assert result.overall()["froc"] == 0.0
    assert result.overall()["ap"] == 0.0
    assert result.case_counts().tolist() == [[1, 0, 0], [0, 0, 0]]
    nothing = scored([boxes([cube(0.0)], scores=[0.9])], [boxes([])])
    assert math.isnan(nothing.mean)
    assert nothing.case_counts(rate=1.0).tolist() == [[0, 0, 1]]
    assert "-" in nothing.table(["a"])


def test_boxes_without_scores_are_refused():
    with pytest.raises(ValueError, match="need scores"):
        judged(boxes([cube(0.0)]), boxes([cube(0.0)]))


def test_an_image_that_a_sampler_repeated_counts_once_and_order_does_not_matter():
    found, truth = drawn_at_random(6, seed=5)
    plain, mixed = BoxScores(2), BoxScores(2)
    plain.update(found, truth, torch.arange(6))
    for n in (4, 2, 5, 0, 2, 1, 3, 4):
        mixed.update([found[n]], [truth[n]], torch.tensor([n]))
    one, other = plain.compute(), mixed.compute()
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.truths, other.truths)
    assert one.overall() == pytest.approx(other.overall())
    assert torch.equal(one.case_counts(), other.case_counts())


def test_datasets_are_scored_by_themselves():
    found, truth = drawn_at_random(8, seed=7)
    names = ["x", "y"] * 4
    parts = scored(found, truth, classes=2).per_dataset(names)
    alone = scored(found[::2], truth[::2], classes=2)
    assert parts["x"].overall() == pytest.approx(alone.overall())
    assert parts["y"].index.tolist() == [1, 3, 5, 7]


def test_rows_have_both_countings_and_intervals_around_the_score():
    found, truth = drawn_at_random(12, seed=9)
    result = scored(found, truth, classes=2)
    rows = result.rows(["a", "b"])
    assert [row["name"] for row in rows] == ["a", "b", "all"]
    assert rows[2]["boxes"] == sum(len(each.corners) for each in truth)
    assert all(row["froc_low"] <= row["froc"] <= row["froc_high"] for row in rows)
    assert rows[2]["froc_strict"] < rows[2]["froc"]
    assert all(line.isascii() and len(line) <= 120 for line in result.table(["a", "b"]).splitlines()[:5])
    assert set(result.scores(["a", "b"])) >= {"froc", "froc_strict", "ap50", "ap", "froc_at_0.5", "ap50/b"}


def test_a_rank_without_images_sends_what_the_others_can_receive():
    def sent_by(metric):
        sent = []

        def gather(state, group):
            sent.append((state.dtype, state.shape[1:]))
            return [state]

        metric.sync(dist_sync_fn=gather, distributed_available=lambda: True)
        metric.unsync()
        return sent

    full, empty = BoxScores(2), BoxScores(2)
    full.update(*drawn_at_random(3, seed=2), torch.arange(3))
    assert sent_by(empty) == sent_by(full)
    assert len(full.compute().index) == 3


PROGRAM = """
import json, sys, torch
from torch.distributed import init_process_group
from lightning_atlas.box_metrics import BoxScores
from lightning_atlas.types import Boxes
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
init_process_group("gloo", init_method=store, rank=rank, world_size=2)
metric = BoxScores(1)
corners = torch.tensor([[0.0, 0, 0, 4, 4, 4], [9, 9, 9, 12, 12, 12], [0, 0, 0, 4, 4, 3]])
if rank == int(sys.argv[3]):
    for n, number in ((0, 3), (1, 1), (2, 2)):
        found = Boxes(corners[: n + 1], torch.zeros(n + 1, dtype=torch.long), torch.rand(n + 1))
        metric.update([found], [Boxes(corners[:1], torch.zeros(1, dtype=torch.long))], torch.tensor([number]))
result = metric.compute()
print(json.dumps([result.index.tolist(), result.truths.tolist(), result.case.tolist(), result.overall()["froc_at_4"]]))
"""


@pytest.mark.slow
def test_two_processes_of_which_one_saw_no_image(tmp_path):
    store = (tmp_path / "store").as_uri()
    runs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), store, "1"], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    told = [json.loads(run.communicate(timeout=120)[0].splitlines()[-1]) for run in runs]
    assert told[0] == told[1] == [[1, 2, 3], [[1], [1], [1]], [0, 0, 1, 1, 1, 2], 1.0]
