from itertools import product
from typing import Any

import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.data.box_utils import box_pair_giou

from lightning_atlas.contract import Contract
from lightning_atlas.intake import load_weights, start_at_prior
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import (
    R3D,
    AnchorLoss,
    BoxSelection,
    ResUNet,
    RetinaDetector,
    SegResNet,
    SliceDetector,
    UNet,
    UniMiSS,
)
from lightning_atlas.networks.base import check_stages
from lightning_atlas.networks.depth import DepthPolicy
from lightning_atlas.networks.detection.retina import by_anchor
from lightning_atlas.types import Boxes


def built(classes: int = 2, **options: Any) -> RetinaDetector:
    torch.manual_seed(0)
    return RetinaDetector(UNet(features=(4, 8, 16)), classes, features=16, **options)


def two_boxes() -> tuple[torch.Tensor, list[Boxes]]:
    torch.manual_seed(1)
    image = 0.1 * torch.randn(2, 1, 16, 24, 16)
    image[0, :, 2:8, 3:10, 4:11] += 2
    image[1, :, 7:15, 9:17, 5:14] -= 2
    corners = torch.tensor([[[2.0, 3, 4, 8, 10, 11]], [[7.0, 9, 5, 15, 17, 14]]])
    return image, [Boxes(each, torch.tensor([number])) for number, each in enumerate(corners)]


FOCAL: dict[str, Any] = {"loss": AnchorLoss("focal", "smooth_l1"), "anchors": [[6.0, 6.0, 6.0], [9.0, 9.0, 7.0]]}


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), FOCAL])
def test_it_learns_to_find_two_boxes_of_two_classes(options):
    torch.manual_seed(0)
    network, (image, truth) = RetinaDetector(UNet(features=(4, 8)), 2, (1,), 16, **options), two_boxes()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(80 if not options else 60):
        optimizer.zero_grad()
        torch.stack([*network.losses(network(image), truth).values()]).sum().backward()
        optimizer.step()
    for found, wanted in zip(network.eval().found(network(image)), truth, strict=True):
        assert found.scores is not None
        assert float(found.scores[0]) > 0.5
        assert found.classes[0] == wanted.classes[0]
        assert float(box_pair_giou(found.corners[:1], wanted.corners)[0]) > 0.5


@pytest.mark.parametrize("detector", [RetinaDetector, SliceDetector])
def test_sizes_are_those_of_the_encoder_that_is_held(detector):
    assert detector(ResUNet(R3D(features=8)), features=8).size_multiple == R3D.size_multiple == 1
    held = detector(SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), levels=(-2, -1), features=8)
    held.backbone.size_multiple = (4, 4, 1)  # as one with a policy along k may
    assert held.size_multiple == (4, 4, 1)


def test_anchors_lie_about_the_middle_of_slices_that_pools_have_merged():
    pooled = DepthPolicy(pools={1: "halve", 2: "halve", 3: "merge"})
    network = RetinaDetector(R3D(features=4, depth_policy=pooled), 1, features=16).eval()
    answer = network(torch.zeros(1, 1, 32, 32, 9))
    middles = [(each[:, 2] + each[:, 5]).div(2).unique().tolist() for each in answer.anchors]
    assert middles[-1] == [4.5]  # nine slices were halved to 5 and 3, and these merged to the middle one
    assert middles[0] == [1.0, 3.0, 5.0, 7.0, 9.0]


def test_an_image_without_boxes_is_learned_from_and_every_parameter_gets_a_gradient():
    network = built()
    image, empty = torch.randn(1, 1, 16, 16, 16), Boxes(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    parts = network.losses(network(image), [empty])
    torch.stack([*parts.values()]).sum().backward()
    assert parts["boxes"] == 0
    assert parts["classes"] > 0
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_images():
    network, (image, truth) = built(loss=AnchorLoss("focal")), two_boxes()
    both = network.losses(network(image), truth)
    one = [network.losses(network(image[n : n + 1]), truth[n : n + 1]) for n in range(2)]
    for name, value in both.items():
        torch.testing.assert_close(value, (one[0][name] + one[1][name]) / 2)


def test_what_is_found_lies_in_the_image_and_is_best_first_and_as_few_as_asked():
    network = built(selection=BoxSelection(least_score=0.0, overlap=0.9, most=30)).eval()
    for found in network.found(network(torch.randn(2, 1, 16, 24, 20))):
        assert found.scores is not None
        assert len(found.corners) == 30
        assert (found.scores.diff() <= 0).all()
        assert (found.corners >= 0).all()
        assert (found.corners <= torch.tensor([16.0, 24, 20] * 2)).all()
        assert (found.corners[:, 3:] > found.corners[:, :3]).all()


def test_logits_and_deltas_lie_beside_their_anchors():
    """The answers of one voxel and one shape, written into the maps, come out as that anchor's box."""
    network = built(anchors=[[8.0, 8.0, 8.0], [12.0, 12.0, 12.0]], selection=BoxSelection(0.5)).eval()
    answer = network(torch.zeros(1, 1, 16, 24, 20))
    maps = torch.full((1, 4, 8, 12, 10), -9.0)
    maps[0, 2 * 1 + 0, 3, 5, 7] = 9.0  # the second shape, class 0, of the second level
    logits = [torch.full_like(each, -9.0) for each in answer.logits]
    logits[1] = by_anchor(maps, 2)
    found = network.found(answer._replace(logits=logits, deltas=[torch.zeros_like(each) for each in answer.deltas]))[0]
    middle, half = torch.tensor([7.0, 11.0, 15.0]), 12.0  # twice as large one grid below
    expected = torch.cat([middle - half, middle + half]).clamp(min=0).minimum(torch.tensor([16.0, 24, 20] * 2))
    assert (found.corners.tolist(), found.classes.tolist()) == ([expected.tolist()], [0])


def test_the_heads_have_the_names_of_monai():
    theirs = RetinaNet(3, 2, 1, _Extractor(16))
    ours = built().state_dict()
    for name, value in theirs.state_dict().items():
        assert ours[name].shape == value.shape


class _Extractor(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.out_channels = channels


def test_weights_of_a_segmentation_fill_the_whole_encoder():
    source, network = UNet(features=(4, 8, 16)), built()
    report = load_weights(network, SourceWeights(dict(source.state_dict()), None, "memory", ""))
    assert report.encoder_share == 1.0
    assert torch.equal(
        network.state_dict()["backbone.encoder.2.1.conv.weight"], source.state_dict()["encoder.2.1.conv.weight"]
    )


def test_classes_are_taken_by_name_and_new_ones_stay_fresh():
    source, network = built(classes=2), built(classes=3)
    torch.nn.init.normal_(source.classification_head.cls_logits.weight)
    given = SourceWeights(
        dict(source.state_dict()), Contract(classes=("liver", "spleen"), predicts="boxes"), "memory", ""
    )
    report = load_weights(network, given, ("kidney", "spleen", "liver"))
    theirs, ours = (each.classification_head.cls_logits.weight for each in (source, network))
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[0])
    assert report.fresh_outputs == ["kidney"]


THREE = [[8.0, 8.0, 8.0], [16.0, 16.0, 16.0], [24.0, 16.0, 8.0]]


@pytest.mark.parametrize(
    ("theirs", "ours", "shapes", "fresh"),
    [
        (("nodule",), ("liver_lesion",), 2, ["liver_lesion"]),  # as many logits as softmax has of one class
        (("liver", "spleen"), ("kidney", "spleen", "liver"), 3, ["kidney"]),
        (("liver", "spleen"), ("spleen", "liver"), 3, []),
    ],
)
def test_each_shape_of_an_anchor_takes_its_classes_by_name(theirs, ours, shapes, fresh):
    source, network = (built(classes=len(each), anchors=THREE[:shapes]) for each in (theirs, ours))
    torch.nn.init.normal_(source.classification_head.cls_logits.weight)
    before = network.classification_head.cls_logits.weight.detach().clone()
    given = SourceWeights(dict(source.state_dict()), Contract(classes=theirs, predicts="boxes"), "memory", "")
    assert load_weights(network, given, ours).fresh_outputs == fresh
    was, now = (each.classification_head.cls_logits.weight for each in (source, network))
    for row, (shape, name) in enumerate(product(range(shapes), ours)):
        known = name in theirs
        assert torch.equal(now[row], was[shape * len(theirs) + theirs.index(name)] if known else before[row])


def test_weights_for_another_number_of_shapes_leave_the_classes_fresh():
    source, network = built(classes=2, anchors=THREE), built(classes=3, anchors=THREE[:2])  # six logits each
    torch.nn.init.normal_(source.classification_head.cls_logits.weight)
    before = network.classification_head.cls_logits.weight.detach().clone()
    given = SourceWeights(dict(source.state_dict()), Contract(classes=("a", "b"), predicts="boxes"), "memory", "")
    assert load_weights(network, given, ("b", "c", "a")).fresh_outputs == ["b", "c", "a"]
    assert torch.equal(network.classification_head.cls_logits.weight, before)


@pytest.mark.parametrize(("shapes", "shares"), [(2, {"a": 0.1}), (3, {"a": 0.2, "b": 0.05}), (2, {"a": 0.8, "b": 0.7})])
def test_each_shape_of_an_anchor_starts_at_the_prior(shapes, shares):
    network = built(classes=len(shares), anchors=THREE[:shapes])
    start_at_prior(network, tuple(shares), shares)
    bias = network.classification_head.cls_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.tensor([*shares.values()] * shapes))


def test_levels_are_what_the_decoder_reads_and_lie_on_the_grids_that_are_said():
    image = torch.randn(1, 1, 16, 32, 16)
    for encoder in (UNet(features=(4, 8, 16)), SegResNet(init_filters=8, blocks_down=(1, 1, 2), blocks_up=(1, 1))):
        found, sides = encoder.levels(image), torch.tensor(image.shape[2:])
        assert tuple(each.shape[1] for each in found) == encoder.level_features
        for level, reduction in zip(found, encoder.reductions(), strict=True):
            assert torch.equal(torch.tensor(level.shape[2:]) * torch.tensor(reduction), sides)
        assert torch.equal(found[-1], encoder.encoded(image))


def test_resizing_makes_only_the_last_layer_of_the_classes_anew():
    network = built(classes=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.resize(2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.resize(5)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(network.output_axes())
    assert network.classes == 5
    assert network(torch.zeros(1, 1, 16, 16, 16)).logits[0].shape[2] == 5
    # As published: before training, an anchor is a box of a class in one of a hundred.
    assert torch.allclose(network.classification_head.cls_logits.bias.sigmoid(), torch.tensor(0.01))


def test_stages_hold_every_tensor_once_and_the_decoder_is_gone():
    network = built()
    check_stages(network)
    assert [stage.part for stage in network.stages()] == ["encoder"] * 3 + ["decoder", "head"]
    assert not [name for name in network.state_dict() if "decoder" in name]


def test_grids_of_an_encoder_that_keeps_its_slices_are_anisotropic():
    network = RetinaDetector(R3D(features=8, norm="group"), features=8, levels=(1, 2, 3, 4))
    answer = network(torch.zeros(1, 1, 64, 32, 3))
    assert [len(each) for each in answer.anchors] == [16 * 8 * 3, 8 * 4 * 3, 4 * 2 * 3, 2 * 1 * 3]
    assert answer.anchors[0][1].tolist() == [-6.0, -6.0, -6.5, 10.0, 10.0, 9.5]  # a cube of the image all the same


def test_of_a_network_that_decodes_a_pyramid_the_pyramid_is_taken():
    pyramid = R3D(features=2, depth_policy=DepthPolicy(strides="stride"))
    assert RetinaDetector(ResUNet(pyramid), features=8).backbone is pyramid


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="UniMiSS does not give"):
        RetinaDetector(UniMiSS(features=(8, 16, 16, 32)))
    with pytest.raises(ValueError, match=r"levels \[0, 1\] do not fit UNet, which has levels 0 \(the finest\) to 2"):
        built(levels=(0, 1))
    with pytest.raises(ValueError, match="features is 12, give a multiple of 8"):
        RetinaDetector(UNet(features=(4, 8, 16)), features=12)
    with pytest.raises(ValueError, match="multiples of 4"):
        built()(torch.zeros(1, 1, 16, 17, 16))
