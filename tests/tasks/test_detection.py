from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.networks import Detector, RetinaDetector, Stage, UNet
from lightning_atlas.tasks import Classification, Detection, Segmentation
from lightning_atlas.tasks.box_windows import joined, mirrored, own
from lightning_atlas.types import Boxes


class Spots(Detector):
    """Finds the bright pieces of an image; of two, the smaller has the higher score, as a cut one must not profit."""

    def __init__(self, planar: bool = False) -> None:
        super().__init__()
        self.planar, self.size_multiple = planar, 4
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    @property
    def classes(self) -> int:
        return 2

    def stages(self) -> list[Stage]:
        return [Stage("weight", "encoder", ("weight",))]

    def forward(self, image: Any, truth: Any = None) -> Any:
        self.check_size(image)
        self.seen.append(tuple(image.shape))
        return image

    def losses(self, answer: Any, truth: list[Boxes]) -> dict[str, torch.Tensor]:
        counts = torch.tensor([float(len(each.corners)) for each in truth])
        return {"classes": self.weight * counts.mean(), "boxes": 2 * self.weight}

    def found(self, answer: Any) -> list[Boxes]:
        return [self._pieces(image[0]) for image in answer]

    def _pieces(self, image: torch.Tensor) -> Boxes:
        pieces = np.zeros(image.shape, np.int32)
        ndimage.label(image.numpy() > 0, output=pieces)
        rows, classes, scores = [], [], []
        for place in ndimage.find_objects(pieces):
            piece = image[place]
            rows.append([*(side.start for side in place), *(side.stop for side in place)])
            classes.append(int(piece.max()) - 1)
            scores.append(1 - piece.numel() / 10_000)
        corners = torch.tensor(rows, dtype=torch.float32).view(-1, 6)
        return Boxes(corners, torch.tensor(classes, dtype=torch.long), torch.tensor(scores))


def scene(sides, spots):
    image = torch.zeros(1, 1, *sides)
    for (i, j, k), (a, b, c), value in spots:
        image[0, 0, i : i + a, j : j + b, k : k + c] = value
    return image


def rows(boxes):
    return sorted(
        (*corners, number) for corners, number in zip(boxes.corners.tolist(), boxes.classes.tolist(), strict=True)
    )


def window(patch, overlap=0.5, **more):
    return SlidingWindow(patch=patch, overlap=overlap, **more)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_find_each_box_once_and_whole_wherever_it_lies(batch_size):
    """Pieces of up to three quarters of the overlap, at every phase against the faces of the windows."""
    task = Detection(window((16, 16, 8), batch_size=batch_size))
    for i, j in product(range(0, 12, 3), range(1, 14, 4)):
        spots = [((i, j, 5), (6, 3, 3), 1), ((i + 20, j + 2, 0), (5, 6, 2), 2), ((35, 27, 10), (3, 3, 3), 1)]
        image = scene((39, 30, 13), spots)
        (found,) = task.infer(Spots(), image)
        assert rows(found) == [
            (*map(float, low), *(float(a + b) for a, b in zip(low, side, strict=True)), value - 1)
            for low, side, value in sorted(spots)
        ]


def test_without_a_window_an_image_is_filled_up_to_what_the_network_takes_and_boxes_stay_inside_it():
    image = scene((18, 7, 5), [((15, 4, 2), (3, 3, 3), 1)]) - 1.0
    image[image == -1.0] = 0.0  # the filling takes the least value, which counts as bright here
    image += 1.0
    network = Spots()
    (found,) = Detection().infer(network, image)
    assert network.seen == [(1, 1, 20, 8, 8)]
    assert rows(found) == [(0.0, 0.0, 0.0, 18.0, 7.0, 5.0, 0)]


def test_a_box_in_the_filling_alone_is_dropped():
    class Beyond(Spots):
        def found(self, answer):
            corners = torch.tensor([[18.0, 0, 0, 20, 4, 4], [1, 1, 1, 3, 3, 3]])
            return [Boxes(corners, torch.zeros(2, dtype=torch.long), torch.tensor([0.9, 0.5]))]

    (found,) = Detection().infer(Beyond(), torch.zeros(1, 1, 18, 8, 8))
    assert rows(found) == [(1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 0)]


def test_an_image_smaller_than_the_window_and_a_batch_of_two():
    one = scene((10, 20, 6), [((2, 15, 1), (3, 3, 3), 1)])
    other = scene((10, 20, 6), [((6, 2, 3), (2, 2, 2), 2)])
    found = Detection(window((16, 16, 8))).infer(Spots(), torch.cat([one, other]))
    assert [rows(each) for each in found] == [
        [(2.0, 15.0, 1.0, 5.0, 18.0, 4.0, 0)],
        [(6.0, 2.0, 3.0, 8.0, 4.0, 5.0, 1)],
    ]


def test_at_most_so_many_are_kept_the_best():
    spots = [((4 * n, 2, 2), (1, 1, n + 1), 1) for n in range(4)]
    for chosen in (None, window((16, 8, 8))):
        (found,) = Detection(chosen, most=2).infer(Spots(), scene((16, 8, 8), spots))
        assert found.corners[:, 0].tolist() == [0.0, 4.0]  # the smallest have the highest scores


def test_mirrored_windows_say_the_same_and_sides_change_places():
    image = scene((24, 20, 9), [((3, 14, 2), (4, 3, 2), 1), ((17, 5, 6), (3, 3, 3), 2)])
    plain = Detection(window((16, 16, 8)))
    turned = Detection(window((16, 16, 8), mirror=True))
    turned.setup(["liver", "spleen"], mirrored_axes=["i", "k"])
    assert rows(turned.infer(Spots(), image)[0]) == rows(plain.infer(Spots(), image)[0])
    assert turned.window is not None
    assert len(turned.window.reversals) == 3
    sided = Detection(window((24, 20, 12), mirror=True))
    sided.setup(["kidney_left", "kidney_right"], mirrored_axes=["i"])
    found = rows(sided.infer(Spots(), image)[0])  # told by brightness, which no mirror changes: both sides are said
    assert {row[6] for row in found if row[0] == 3.0} == {0, 1}


def test_mirroring_twice_changes_nothing():
    corners = torch.tensor([[1.0, 2, 3, 4, 6, 9], [0, 0, 0, 2, 2, 2]])
    boxes = Boxes(corners, torch.tensor([0, 1]), torch.tensor([0.9, 0.8]))
    once = mirrored(boxes, (0, 2), (10, 11, 12), [(0, 1)])
    assert once.corners[0].tolist() == [6.0, 2.0, 3.0, 9.0, 6.0, 9.0]
    assert once.classes.tolist() == [1, 0]
    again = mirrored(once, (0, 2), (10, 11, 12), [(0, 1)])
    assert torch.equal(again.corners, corners)
    assert torch.equal(again.classes, boxes.classes)


def test_what_lies_in_the_overlap_near_a_face_is_the_neighbours_but_for_the_border_of_the_image():
    corners = torch.tensor([[0.0, 4, 4, 2, 6, 6], [13, 4, 4, 16, 6, 6], [2, 4, 4, 16, 9, 9], [9, 4, 4, 12, 6, 6]])
    shared = (8, 8, 8)
    assert own(corners, (8, 0, 0), (16, 16, 16), (40, 16, 16), shared).tolist() == [False, False, True, True]
    assert own(corners, (0, 0, 0), (16, 16, 16), (40, 16, 16), shared).tolist() == [True, False, True, True]
    assert own(corners, (0, 0, 0), (16, 16, 16), (16, 16, 16), shared).all()


def batch_of(truth, image=None):
    batch: Any = {"image": torch.zeros(len(truth), 1, 8, 8, 8) if image is None else image, "boxes": truth}
    return batch | {"index": torch.arange(len(truth))}


def some_boxes(*corners):
    return Boxes(torch.tensor(corners).view(-1, 6).float(), torch.zeros(len(corners), dtype=torch.long))


def test_the_loss_is_the_sum_of_its_parts_and_the_network_sees_what_is_to_be_learned():
    task, network = Detection(), Spots()
    batch = batch_of([some_boxes([0, 0, 0, 1, 1, 1]), some_boxes()])
    losses = task.loss(task.answer(network, batch), batch)
    assert losses["loss"].item() == pytest.approx(2.5)
    assert {name: value.item() for name, value in losses.items() if name != "loss"} == {"classes": 0.5, "boxes": 2.0}
    losses["loss"].backward()
    assert network.weight.grad is not None
    assert network.weight.grad.item() == pytest.approx(2.5)
    assert not losses["boxes"].requires_grad
    with pytest.raises(ValueError, match=r"batch has none: say which in data\.init_args\.boxes"):
        task.answer(network, {"image": batch["image"]})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_throughout_is_refused_before_anything_is_computed(kind):
    network = Spots().to(kind)
    batch = batch_of([some_boxes([0, 0, 0, 1, 1, 1])], torch.zeros(1, 1, 8, 8, 8, dtype=kind))
    for chosen in (None, window((8, 8, 8))):
        with pytest.raises(ValueError, match=rf"found {kind}: set trainer\.precision: bf16-mixed"):
            Detection(chosen).infer(network, batch["image"])
    with pytest.raises(ValueError, match=r"trainer\.precision: bf16-mixed"):
        Detection().answer(network, batch)
    assert network.seen == []


def test_what_is_found_exactly_is_scored_as_such():
    task = Detection(window((16, 16, 8)))
    network = task.adapted(Spots())
    task.setup(["liver", "spleen"])
    image = scene((24, 20, 9), [((3, 14, 2), (4, 3, 2), 1), ((17, 5, 6), (3, 3, 3), 1)])
    truth = some_boxes([3, 14, 2, 7, 17, 4], [17, 5, 6, 20, 8, 9])
    batch = batch_of([truth], image)
    task.update("test", task.decode(task.infer(network, image)), batch)
    assert task.compute("test").overall() == pytest.approx(dict.fromkeys(task.compute("test").overall(), 1.0))
    task.reset("test")
    task.update("test", [truth._replace(scores=torch.tensor([0.5, 0.4]))], batch_of([some_boxes([0, 0, 0, 1, 1, 1])]))
    assert task.compute("test").mean == 0.0


def test_of_a_planar_network_boxes_are_compared_in_the_plane():
    for planar, expected in ((True, 1.0), (False, 0.0)):
        task = Detection()
        task.adapted(Spots(planar=planar))
        task.setup(["lesion"])
        found = some_boxes([2, 2, 0, 6, 6, 1])._replace(scores=torch.tensor([0.5]))
        task.update("val", [found], batch_of([some_boxes([2, 2, 0, 6, 6, 9])]))
        assert task.compute("val").mean == expected


def test_a_network_that_finds_no_boxes_gives_its_encoder_to_a_detector():
    task = Detection()
    network = task.adapted(UNet(features=(4, 8, 12)))
    assert isinstance(network, RetinaDetector)
    assert "backbone.encoder.0.0.conv.weight" in network.state_dict()
    assert task.adapted(network) is network
    assert task.outputs(["a", "b"]) == 2


def test_data_for_another_task_are_refused():
    Detection().agree(Contract(classes=("a",), predicts="boxes"))
    with pytest.raises(ValueError, match=r"labels of voxels: set data\.init_args\.boxes"):
        Detection().agree(Contract(classes=("a",)))
    with pytest.raises(ValueError, match=r"the class of whole scans: set data\.init_args\.boxes"):
        Detection().agree(Contract(predicts="class"))
    with pytest.raises(ValueError, match=r"give boxes .*Detection, or data\.init_args\.boxes: null"):
        Segmentation(SlidingWindow()).agree(Contract(predicts="boxes"))
    with pytest.raises(ValueError, match=r"give boxes .*predicts the class of whole scans"):
        Classification().agree(Contract(predicts="boxes"))
    with pytest.raises(ValueError, match="overlap is a share"):
        Detection(overlap=0.0)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        Detection(most=0)


def test_answers_about_one_image_are_joined():
    parts = [
        some_boxes([0, 0, 0, 1, 1, 1])._replace(scores=torch.tensor([0.5])),
        some_boxes()._replace(scores=torch.zeros(0)),
    ]
    assert joined(parts).corners.shape == (1, 6)


@pytest.mark.gpu
def test_on_a_gpu_the_same_boxes_are_found_and_scored():
    torch.manual_seed(0)
    task = Detection(window((32, 32, 16)))
    network = task.adapted(UNet(features=(8, 16, 16))).eval()
    task.setup(["a"])
    image = torch.randn(1, 1, 40, 40, 24)
    with torch.no_grad():
        (here,) = task.infer(network, image)
        (there,) = task.to("cuda").infer(network.to("cuda"), image.to("cuda"))
    assert len(here.corners) > 0
    torch.testing.assert_close(there.corners[:5].cpu(), here.corners[:5], rtol=1e-2, atol=0.1)
    task.update("test", [there], batch_of([some_boxes([2, 2, 2, 9, 9, 9])]))
    assert task.compute("test").overall()["froc"] >= 0.0
