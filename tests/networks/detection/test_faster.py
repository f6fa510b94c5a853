from itertools import product
from typing import Any

import pytest
import torch
from monai.data.box_utils import box_pair_giou

from lightning_atlas.contract import Contract
from lightning_atlas.intake import load_weights, start_at_prior
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import P3D, BoxSelection, DepthPolicy, Proposing, Refining, SliceDetector, UNet
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.detection import faster
from lightning_atlas.types import Boxes


def built(classes: int = 2, slices: int = 3, **options: Any) -> SliceDetector:
    torch.manual_seed(0)
    return SliceDetector(P3D(depth="18ba", features=8), classes, slices, features=16, **options)


def two_boxes() -> tuple[torch.Tensor, list[Boxes]]:
    torch.manual_seed(1)
    image = 0.1 * torch.randn(2, 1, 32, 64, 4)
    image[0, :, 8:22, 12:26] += 2
    image[1, :, 6:26, 28:52] -= 2
    corners = torch.tensor([[[8.0, 12, 0, 22, 26, 4]], [[6.0, 28, 0, 26, 52, 4]]])
    return image, [Boxes(each, torch.tensor([number])) for number, each in enumerate(corners)]


def few() -> dict[str, Any]:
    return {"first": Proposing(samples=64, selection=BoxSelection(0.0, 200, 0.7, 60)), "second": Refining(samples=32)}


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(lambda: built(slices=4, **few()), marks=pytest.mark.slow, id="P3D"),
        pytest.param(lambda: SliceDetector(UNet(features=(4, 8, 8)), 2, 4, "mean", (-2, -1), 8, **few()), id="UNet"),
    ],
)
def test_it_learns_to_find_two_boxes_of_two_classes_over_the_whole_depth(network):
    torch.manual_seed(0)
    network, (image, truth) = network(), two_boxes()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack([*network.losses(network(image, truth), truth).values()]).sum().backward()
        optimizer.step()
    for found, wanted in zip(network.eval().found(network(image)), truth, strict=True):
        assert found.scores is not None
        assert float(found.scores[0]) > 0.5
        assert found.classes[0] == wanted.classes[0]
        assert float(box_pair_giou(found.corners[:1], wanted.corners)[0]) > 0.5
        assert found.corners[:, [2, 5]].unique(dim=0).tolist() == [[0.0, 4.0]]


def test_an_image_without_boxes_is_learned_from_and_every_parameter_gets_a_gradient():
    network = built(collapse="group")
    empty = [Boxes(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))]
    parts = network.losses(network(torch.randn(1, 1, 32, 64, 3), empty), empty)
    torch.stack([*parts.values()]).sum().backward()
    assert parts["boxes"] == parts["proposal_boxes"] == 0
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_small_differences_cost_their_square_below_beta():
    """A box lies on its anchor and its region, so the deltas are the differences, of cost x^2 / 2b or x - b / 2."""
    box, deltas = torch.tensor([[8.0, 8.0, 24.0, 24.0]]), torch.tensor([[0.25, -2.0, 0.0, 1.0]])
    far, matched, classes = box + 100, torch.tensor([0]), torch.tensor([0])
    for beta, cost in ((0.0, 3.25), (0.5, 0.0625 + 1.75 + 0.75), (1.0, 0.03125 + 1.5 + 0.5)):
        _, first = Proposing(beta=beta).losses(torch.zeros(2), torch.cat([deltas] * 2), [box, far], box)
        regions = torch.zeros(1, 2), deltas[:, None].expand(1, 2, 4), box
        _, second = Refining(beta=beta).losses(*regions, matched, box, classes)
        assert [float(first), float(second)] == pytest.approx([cost / 2, cost])  # two anchors are asked, one region


def test_the_published_detector_has_the_published_size_and_names():
    with torch.device("meta"):
        network = SliceDetector(P3D(depth=63), out_channels=80)
    # Half precision makes this 86.8 MiB, the size of the file mp3d63-d720bda1.pth.
    assert sum(each.numel() for each in network.parameters()) == 45_530_852
    names = {name for name in network.state_dict() if not name.startswith("backbone.")}
    last = [f"{part}.{each}" for part in ("lateral_convs", "fpn_convs") for each in range(4)]
    layers = [*(f"neck.{each}.conv" for each in last), *(f"rpn_head.rpn_{each}" for each in ("conv", "cls", "reg"))]
    layers += [f"bbox_head.{each}" for each in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")]
    assert names == {f"{layer}.{each}" for layer in layers for each in ("weight", "bias")}
    assert network.state_dict()["bbox_head.fc_cls.weight"].shape == (81, 1024)


def test_anchors_are_four_voxels_of_each_of_five_grids_in_three_shapes():
    network = built()
    answer = network(torch.zeros(1, 1, 64, 128, 3))
    grids = [16 * 32, 8 * 16, 4 * 8, 2 * 4, 1 * 2]
    assert [len(each) for each in answer.anchors] == [3 * count for count in grids]
    for stride, anchors in zip((4, 8, 16, 32, 64), answer.anchors, strict=True):
        low, high = anchors[:3].unflatten(1, (2, 2)).unbind(1)
        sides = high - low
        torch.testing.assert_close(sides.prod(dim=1), torch.full((3,), 16.0 * stride**2))
        torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0]))  # rows to columns
        torch.testing.assert_close((low + high) / 2, torch.full((3, 2), stride / 2))


def test_a_region_is_read_from_the_grid_that_suits_its_size(monkeypatch):
    seen = {}

    def noted(level, boxes, reduction, size):
        seen[reduction] = (boxes[:, 2] - boxes[:, 0]).tolist()
        return torch.full((len(boxes), level.shape[0], size, size), float(reduction[0]))

    monkeypatch.setattr(faster, "roi_align", noted)
    network = built()
    regions = torch.tensor([[0.0, 0.0, side, side] for side in (500.0, 8.0, 111.0, 112.0, 230.0, 56.0)])
    found = network.aligned([torch.zeros(2, 4, 4)] * 4, [(4, 4), (8, 8), (16, 16), (32, 32)], regions)
    assert seen == {(4, 4): [8.0, 111.0, 56.0], (8, 8): [112.0], (16, 16): [230.0], (32, 32): [500.0]}
    assert found[:, 0, 0, 0].tolist() == [32.0, 4.0, 4.0, 8.0, 16.0, 4.0]


@pytest.mark.parametrize(
    ("steps", "sides", "expected"),
    [
        ((4, 16, 32), (40.0, 112.0, 223.0, 224.0, 447.0, 448.0), [4, 4, 4, 16, 16, 32]),  # a grid is left out
        ((2, 6, 18), (27.0, 56.0, 84.0, 251.0, 252.0), [2, 2, 6, 6, 18]),  # strides of 3
    ],
)
def test_between_two_grids_a_region_is_read_from_the_finer(steps, sides, expected):
    regions = torch.tensor([[0.0, 0.0, side, side] for side in sides])
    levels = [torch.full((2, 4, 4), float(step)) for step in steps]
    found = built().aligned(levels, [(step, step) for step in steps], regions)
    assert found[:, 0, 0, 0].tolist() == expected


def test_the_second_stage_reads_rows_before_columns_as_published():
    head, regions = built().bbox_head, torch.randn(1, 16, 7, 7)
    state = head.state_dict()
    hidden = torch.einsum("ocrk,nckr->no", state["shared_fcs.0.weight"].unflatten(1, (16, 7, 7)), regions)
    hidden = torch.relu(hidden + state["shared_fcs.0.bias"])
    hidden = torch.relu(hidden @ state["shared_fcs.1.weight"].T + state["shared_fcs.1.bias"])
    torch.testing.assert_close(head(regions)[0], head.fc_cls(hidden))


def test_the_detector_of_the_journal_pools_nine_slices_away():
    policy = DepthPolicy(pools={1: "halve", 2: "halve", 3: "merge"})
    backbone = P3D(depth="18ba", features=8, pool_depth=1, depth_policy=policy)
    network = SliceDetector(backbone, slices=9, collapse="group", features=8)
    assert [each.depth for each in network.collapse.children()] == [5, 3, 1, 1]
    assert network(torch.randn(1, 1, 32, 32, 9)).region_logits.isfinite().all()
    with pytest.raises(ValueError, match="slices"):
        network(torch.randn(1, 1, 32, 32, 7))


def test_only_a_collapse_with_weights_depends_on_the_number_of_slices():
    image = torch.randn(1, 1, 32, 32, 5)
    assert built(slices=9, collapse="mean")(image).sides == (32, 32, 5)
    with pytest.raises(ValueError, match="9 slices, and the features have 5"):
        built(slices=9, collapse="group")(image)


def test_weights_for_each_slice_begin_as_the_one_in_the_middle():
    centre, group = built(slices=5).eval(), built(slices=5, collapse="group").eval()
    rest = group.load_state_dict(centre.state_dict(), strict=False)
    assert all(name.startswith("collapse.") for name in rest.missing_keys)
    image = torch.randn(1, 1, 32, 32, 5)
    torch.testing.assert_close(centre(image).region_logits, group(image).region_logits)


def test_what_is_kept_follows_the_second_stage():
    network = built(
        second=Refining(selection=BoxSelection(most=7)), first=Proposing(selection=BoxSelection(0.0, most=20))
    )
    answer = network.eval()(torch.randn(2, 1, 32, 48, 3))
    assert [len(each) for each in answer.regions] == [20, 20]
    assert [len(each.classes) for each in network.found(answer)] == [7, 7]


def test_resizing_makes_only_the_last_layers_anew():
    network = built(classes=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.resize(2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.resize(1)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(network.output_axes())
    assert (network.classes, network.bbox_head.fc_reg.out_features) == (1, 8)


def test_a_class_is_taken_by_name_with_its_deltas():
    source, network = built(classes=2), built(classes=3)
    for each in source.bbox_head.parameters():
        torch.nn.init.normal_(each)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    told = Contract(classes=("lesion", "node"), predicts="boxes")
    given = SourceWeights(dict(source.state_dict()), told, "memory", "")
    report = load_weights(network, given, ("mass", "node", "lesion"))
    assert (report.fresh_outputs, report.fresh, report.left_over) == (["mass"], [], [])
    for layer, each in product(("fc_cls", "fc_reg"), ("weight", "bias")):
        name = f"bbox_head.{layer}.{each}"
        was, now, then = (
            state[name].unflatten(0, (-1, 4 if layer == "fc_reg" else 1))
            for state in (source.state_dict(), network.state_dict(), before)
        )
        assert torch.equal(now, torch.stack([was[0], then[1], was[2], was[1]]))


def test_classes_start_at_the_prior_and_boxes_where_they_were():
    network = built(classes=2)
    before = network.bbox_head.fc_reg.bias.detach().clone()
    start_at_prior(network, ("lesion", "node"), {"lesion": 0.1, "node": 0.02})
    torch.testing.assert_close(network.bbox_head.fc_cls.bias.softmax(0), torch.tensor([0.88, 0.1, 0.02]))
    assert torch.equal(network.bbox_head.fc_reg.bias, before)


def test_stages_hold_every_tensor_once():
    network = built(collapse="full")
    check_stages(network)
    assert [stage.part for stage in network.stages()] == ["encoder"] * 5 + ["decoder", "head"]


def test_losses_need_the_truth_in_the_forward_pass():
    network, (image, truth) = built(), two_boxes()
    with pytest.raises(ValueError, match=r"call network\(image, truth\)"):
        network.losses(network(image), truth)


def test_any_encoder_with_grids_will_do():
    network = SliceDetector(UNet(features=(4, 4, 8, 8)), features=8, slices=8, collapse="group")
    assert [each.depth for each in network.collapse.children()] == [8, 4, 2, 1]
    assert len(network.found(network(torch.randn(1, 1, 32, 32, 8)))) == 1


@pytest.mark.gpu
def test_both_stages_learn_in_half_precision_on_a_gpu():
    network, (image, truth) = built().cuda(), two_boxes()
    truth = [Boxes(each.corners.cuda(), each.classes.cuda()) for each in truth]
    with torch.autocast("cuda", torch.bfloat16):
        parts = network.losses(network(image.cuda(), truth), truth)
    torch.stack([*parts.values()]).sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in network.parameters())
    assert network.found(network(image.cuda()))[0].corners.is_cuda
