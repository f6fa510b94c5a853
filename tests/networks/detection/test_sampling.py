import torch

from lightning_atlas.networks.detection.matching import IGNORED, NOTHING, Matcher
from lightning_atlas.networks.detection.sampling import Sampling


class Given(Matcher):
    def __init__(self, matched):
        self.matched = torch.tensor(matched)

    def match(self, boxes, anchors, levels, shapes):
        return self.matched


def test_what_finds_nothing_fills_up_what_finds_a_box_and_the_ignored_are_left_out():
    matched = [0] * 6 + [NOTHING] * 20 + [IGNORED] * 30
    for samples, share, hits, others in ((8, 0.25, 2, 6), (20, 0.5, 6, 14), (40, 0.5, 6, 20)):
        asked, aims = Sampling(Given(matched), samples, share)(torch.zeros(1, 4), torch.zeros(56, 4))
        assert torch.equal(aims, torch.tensor(matched)[asked])
        assert ((aims >= 0).sum(), (aims == NOTHING).sum(), len(aims)) == (hits, others, hits + others)
        assert len(set(asked.tolist())) == len(asked)


def test_each_call_draws_anew():
    sampling = Sampling(Given([NOTHING] * 100), 10, 0.5)
    torch.manual_seed(0)
    drawn = {tuple(sampling(torch.zeros(1, 4), torch.zeros(100, 4))[0].tolist()) for _ in range(5)}
    assert len(drawn) == 5
