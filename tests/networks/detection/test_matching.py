import pytest
import torch

from lightning_atlas.networks.detection.anchors import grid_anchors
from lightning_atlas.networks.detection.matching import IGNORED, NOTHING, AdaptiveMatcher, OverlapMatcher

LINE = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 4.0, 10.0, 14.0], [0.0, 8.0, 10.0, 18.0], [30.0, 30.0, 40.0, 40.0]])
"""Anchors whose overlaps with the first are 1, 60/140, 20/180 and 0."""


def boxes_at_random(count, generator):
    low = torch.rand(count, 3, generator=generator) * 20
    return torch.cat([low, low + 1 + torch.rand(count, 3, generator=generator) * 12], dim=1)


def test_an_anchor_finds_what_it_overlaps_enough_and_is_left_out_in_between():
    matched = OverlapMatcher(foreground=0.7, background=0.3, rescue=None)(LINE[:1], LINE, [4])
    assert matched.tolist() == [0, IGNORED, NOTHING, NOTHING]


def test_a_box_that_no_anchor_overlaps_enough_is_found_by_the_nearest():
    box = torch.tensor([[0.0, 2.0, 10.0, 6.0]])
    overlaps = [0.4, 0.2 / 1.2, 0.0, 0.0]
    assert OverlapMatcher(0.7, 0.3, rescue=None)(box, LINE, [4]).tolist() == [IGNORED, NOTHING, NOTHING, NOTHING]
    assert OverlapMatcher(0.7, 0.3, rescue=overlaps[0] - 0.01)(box, LINE, [4]).tolist()[0] == 0
    assert OverlapMatcher(0.7, 0.3, rescue=overlaps[0] + 0.01)(box, LINE, [4]).tolist()[0] == IGNORED


def test_a_box_beyond_all_anchors_is_found_by_none_of_them():
    far = torch.tensor([[90.0, 90.0, 99.0, 99.0]])
    assert OverlapMatcher(0.7, 0.3, rescue=0.0)(far, LINE, [4]).tolist() == [NOTHING] * 4


def test_overlaps_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"foreground 0\.3 and background 0\.7"):
        OverlapMatcher(foreground=0.3, background=0.7)


def test_the_adaptive_matcher_takes_what_overlaps_more_than_the_candidates_usually_do():
    # Overlaps of the three candidates: 1, 60/140, 20/180; their mean 0.513 and deviation 0.368 ask for 0.881.
    assert AdaptiveMatcher(candidates=3)(LINE[:1], LINE, [4]).tolist() == [0, NOTHING, NOTHING, NOTHING]
    # Halfway between two anchors, both overlap it by 80/120, and the third candidate by 40/160: 0.724 is asked.
    between = torch.tensor([[0.0, 2.0, 10.0, 12.0]])
    assert AdaptiveMatcher(candidates=2)(between, LINE, [4]).tolist() == [0, 0, NOTHING, NOTHING]


def test_the_adaptive_matcher_asks_each_level_and_each_shape():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    fine = grid_anchors((4, 4), (2, 2), [(2.0, 2.0), (4.0, 4.0)], boxes.device)
    coarse = grid_anchors((2, 2), (4, 4), [(4.0, 4.0)], boxes.device)
    matched = AdaptiveMatcher(candidates=1)(boxes, torch.cat([fine, coarse]), [len(fine), len(coarse)])
    assert matched[len(fine) :].tolist() == [0, NOTHING, NOTHING, NOTHING]


def test_middles_may_have_to_lie_inside_the_box():
    # Overlaps of 0.36 and 0.33, and of nothing: 0.28 is asked. The middle of the second lies beyond the box.
    box, nothing = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), [20.0, 20.0, 30.0, 30.0]
    anchors = torch.tensor([[0.0, 0.0, 6.0, 6.0], [0.0, 4.0, 10.0, 18.0], *[nothing] * 4])
    assert AdaptiveMatcher(6)(box, anchors, [6]).tolist() == [0, 0] + [NOTHING] * 4
    assert AdaptiveMatcher(6, inside=True)(box, anchors, [6]).tolist() == [0] + [NOTHING] * 5


def test_a_box_that_no_candidate_suits_is_found_by_the_one_that_overlaps_it_most():
    box = torch.tensor([[0.0, 0.0, 10.0, 6.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 12.5], [0.0, -9.0, 10.0, 9.0]])
    assert AdaptiveMatcher(2, inside=True)(box, anchors[:1], [1]).tolist() == [0]
    assert AdaptiveMatcher(2, inside=True)(box, anchors, [2]).tolist() == [0, NOTHING]


def test_a_box_in_the_middle_of_a_larger_one_keeps_an_anchor_and_so_does_the_larger():
    boxes = torch.tensor([[30.0, 30, 30, 50, 50, 50], [37, 37, 37, 43, 43, 43], [38, 38, 38, 42, 42, 42]])
    steps = (4, 8, 16)
    levels = [grid_anchors((96 // s,) * 3, (s,) * 3, [(4.0 * s,) * 3], boxes.device) for s in steps]
    matched = AdaptiveMatcher()(boxes, torch.cat(levels), [len(each) for each in levels])
    assert matched.unique().tolist() == [NOTHING, 0, 1, 2]
    alone = AdaptiveMatcher()(boxes[:1], torch.cat(levels), [len(each) for each in levels])
    assert (alone[matched == 0] == 0).all()  # what the others have was its own, or nobody's


@pytest.mark.parametrize("matcher", [AdaptiveMatcher(), AdaptiveMatcher(inside=True), OverlapMatcher()])
def test_a_box_alone_is_found_and_without_boxes_nothing_is(matcher):
    anchors = torch.cat(
        [grid_anchors((16 // s, 16 // s, 16 // s), (2 * s,) * 3, [(8.0 * s,) * 3], torch.device("cpu")) for s in (1, 2)]
    )
    levels = [16**3, 8**3]
    generator = torch.Generator().manual_seed(1)
    for box in boxes_at_random(20, generator):
        assert (matcher(box[None], anchors, levels) == 0).any()
    assert (matcher(torch.zeros(0, 6), anchors, levels) == NOTHING).all()


def test_an_anchor_that_suits_two_boxes_finds_the_one_it_overlaps_more():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 9.0]])
    for matcher in (AdaptiveMatcher(candidates=1), OverlapMatcher(0.5, 0.4, rescue=None)):
        assert matcher(boxes, LINE[:1], [1]).tolist() == [1]
