import math
from typing import Any

import pytest
import torch

from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks import PooledEncoder, UNet
from lightning_atlas.networks.base import Network
from lightning_atlas.tasks import Classification, MultiLabelClassification, Regression, ScanTask, Segmentation
from lightning_atlas.tasks.scans import mean_over_windows, padded


def loss(task, logits, target):
    batch: Any = {"target": target}
    return task.loss(logits, batch)["loss"]


class Mean(torch.nn.Module):
    """Says of an image the mean of its voxels, and that of its first."""

    def forward(self, image):
        return torch.stack([image.mean((1, 2, 3, 4)), image[:, 0, 0, 0, 0]], 1)


def test_a_case_of_unknown_class_teaches_nothing():
    logits = torch.randn(3, 4, requires_grad=True)
    found = loss(Classification(), logits, torch.tensor([2, -1, 0]))
    found.backward()
    probabilities = logits.detach().softmax(1)
    expected = -(probabilities[0, 2].log() + probabilities[2, 0].log()) / 3
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


def test_a_batch_of_which_nothing_is_known_has_no_loss_and_no_gradient():
    logits = torch.randn(2, 2, requires_grad=True)
    unknown = torch.full((2, 2), math.nan)
    pairs = (Classification(), torch.tensor([-1, -1])), (MultiLabelClassification(), unknown), (Regression(), unknown)
    for task, target in pairs:
        found = loss(task, logits, target)
        (gradient,) = torch.autograd.grad(found, logits)
        assert found.item() == 0.0
        assert not gradient.any()


def test_labels_count_for_themselves():
    logits = torch.randn(2, 3, requires_grad=True)
    target = torch.tensor([[1.0, 0.0, math.nan], [math.nan, math.nan, 1.0]])
    found = loss(MultiLabelClassification(), logits, target)
    chances = logits.detach().sigmoid()
    expected = -(chances[0, 0].log() + (1 - chances[0, 1]).log() + chances[1, 2].log()) / 6
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_value_is_learned_in_standard_deviations_and_told_in_its_own_units():
    task = Regression()
    contract = Contract(classes=("age", "kg"), predicts="values", seen_values=((60.0, 10.0), (80.0, 0.0)))
    task.agree(contract)
    perfect = torch.tensor([[1.0, 2.0]])
    assert loss(task, perfect, torch.tensor([[70.0, 82.0]])).item() == pytest.approx(0.0)
    assert task.decode(perfect).values.tolist() == [[70.0, 82.0]]
    assert loss(task, perfect, torch.tensor([[90.0, math.nan]])).item() == pytest.approx(4.0 / 2)


@pytest.mark.parametrize("task", [Classification(), MultiLabelClassification(), Regression()])
def test_the_network_becomes_its_encoder_with_a_head_once(task: ScanTask):
    network: Network = task.adapted(UNet(features=(4, 8)))
    assert isinstance(network, PooledEncoder)
    assert task.adapted(network) is network
    assert Segmentation(SlidingWindow()).adapted(network) is network


def test_a_task_refuses_data_for_another():
    with pytest.raises(ValueError, match=r"give the class of whole scans.*task\.class_path: Classification"):
        Segmentation(SlidingWindow()).agree(Contract(predicts="class"))
    with pytest.raises(ValueError, match=r"give labels of voxels.*task\.class_path: Segmentation"):
        Regression().agree(Contract())
    with pytest.raises(ValueError, match=r"kind: values.*task\.class_path: Regression"):
        Classification().agree(Contract(predicts="values"))
    with pytest.raises(ValueError, match="2 names at least, found 1"):
        Classification().setup(("ill",))
    with pytest.raises(ValueError, match="batch has none"):
        Classification().loss(torch.zeros(1, 2), {})  # type: ignore[typeddict-item]


def test_windows_tile_a_scan_and_their_logits_are_averaged():
    """Windows that do not overlap and fill the image: the mean of their means is the mean of the image."""
    image = torch.randn(2, 1, 8, 12, 4)
    found = mean_over_windows(Mean(), image, SlidingWindow(patch=(4, 4, 4), overlap=0.0, batch_size=5))
    assert torch.allclose(found[:, 0], image.mean((1, 2, 3, 4)), atol=1e-6)
    corners = image[:, 0, ::4, ::4, ::4].flatten(1).mean(1)
    assert torch.allclose(found[:, 1], corners, atol=1e-6)


def test_mirrored_windows_are_averaged_too():
    image = torch.randn(1, 1, 4, 4, 4)
    window = SlidingWindow(patch=(4, 4, 4), overlap=0.0, mirror=True)
    window.set_mirroring(["i"])
    found = mean_over_windows(Mean(), image, window)
    assert found[0, 1].item() == pytest.approx(((image[0, 0, 0, 0, 0] + image[0, 0, 3, 0, 0]) / 2).item(), rel=1e-5)


def test_a_small_scan_is_padded_with_its_least_value():
    image = torch.rand(2, 1, 3, 8, 5) + torch.tensor([1.0, 5.0]).view(2, 1, 1, 1, 1)
    whole = padded(image, 4)
    assert whole.shape == (2, 1, 4, 8, 8)
    assert torch.equal(whole[..., :3, :, :5], image)
    assert [whole[case, 0, 3].unique().item() for case in (0, 1)] == [image[case].min().item() for case in (0, 1)]
    found = mean_over_windows(Mean(), image, SlidingWindow(patch=(8, 8, 8), overlap=0.0))
    assert found.shape == (2, 2)
    assert padded(image, (3, 8, 5)) is image
    assert padded(image, 3, least=4).shape == (2, 1, 4, 10, 7)


def test_the_whole_scan_is_shown_at_once_where_there_is_no_window():
    network = Classification().adapted(UNet(features=(4, 8))).eval()
    image = torch.randn(1, 1, 7, 8, 8)
    with torch.no_grad():
        assert torch.equal(Classification().infer(network, image), network(padded(image, 2)))
        many = Classification(SlidingWindow(patch=(4, 4, 4), overlap=0.5)).infer(network, image)
    assert many.shape == (1, 1)
    assert many.dtype == torch.float32
