import pytest
import torch
from torch import nn

from lightning_atlas.inference import SlidingWindow

SHAPES = [(16, 16, 16), (17, 23, 9), (5, 40, 16), (7, 3, 2), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_network_that_returns_its_input_gives_the_image_back(shape: tuple[int, int, int], batch_size: int):
    image = torch.randn(2, 3, *shape)
    before = image.clone()
    for overlap in (0.0, 0.5, 0.7):
        window = SlidingWindow(patch=(16, 12, 8), overlap=overlap, batch_size=batch_size)
        torch.testing.assert_close(window(nn.Identity(), image), before, rtol=0, atol=1e-5)
    assert torch.equal(image, before)


def test_every_window_has_the_size_of_the_patch():
    seen = []

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(window.shape))
        return window.repeat(1, 5, 1, 1, 1)

    logits = SlidingWindow(patch=(8, 8, 4), batch_size=2)(network, torch.rand(1, 1, 11, 5, 9))
    assert logits.shape == (1, 5, 11, 5, 9)
    assert {shape[1:] for shape in seen} == {(1, 8, 8, 4)}


def test_faces_of_windows_weigh_little():
    def wrong_at_faces(window: torch.Tensor) -> torch.Tensor:
        answer = torch.ones_like(window)
        answer[..., 1:-1, 1:-1, 1:-1] = 0
        return answer

    logits = SlidingWindow(patch=(16, 16, 16))(wrong_at_faces, torch.zeros(1, 1, 48, 48, 48))
    assert logits[..., 8:-8, 8:-8, 8:-8].max() < 0.1  # equal weights would give 0.23 to 1


def test_a_small_image_is_padded_with_its_least_value():
    def least(window: torch.Tensor) -> torch.Tensor:
        return torch.full_like(window, window.min().item())

    logits = SlidingWindow(patch=(8, 8, 8))(least, torch.rand(1, 1, 8, 8, 5) + 1)
    assert logits.min() >= 1


def test_windows_are_joined_in_float32_whatever_the_network_works_in():
    image = torch.randn(1, 1, 20, 20, 20).bfloat16()
    seen = []

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.append(window.dtype)
        return window

    logits = SlidingWindow(patch=(8, 8, 8))(network, image)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(logits, image.float(), rtol=0, atol=1e-5)


def test_a_patch_that_the_network_cannot_take_is_told_with_one_it_can():
    class Downsampling(nn.Identity):
        size_multiple = 8

    with pytest.raises(ValueError, match=r"multiples of 8, found patch \[16, 20, 3\]; try patch: \[16, 24, 8\]"):
        SlidingWindow(patch=(16, 20, 3))(Downsampling(), torch.zeros(1, 1, 4, 4, 4))


def test_a_network_that_is_still_training_is_told():
    class Deep(nn.Module):
        def forward(self, image):
            return [image, image[..., ::2]]

    with pytest.raises(TypeError, match=r"Deep returned 2 outputs, expected one tensor of logits; call eval"):
        SlidingWindow(patch=(8, 8, 8))(Deep(), torch.zeros(1, 1, 8, 8, 8))


@pytest.mark.parametrize("wrong", [{"patch": (8, 0, 8)}, {"overlap": 1.0}, {"overlap": -0.1}, {"batch_size": 0}])
def test_settings_out_of_range_are_named(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SlidingWindow(**wrong)


@pytest.mark.gpu
def test_logits_gathered_on_the_host_are_those_of_the_device():
    network, image = nn.Conv3d(1, 3, 3, padding=1).cuda(), torch.randn(1, 1, 20, 12, 9).cuda()
    on_host = SlidingWindow(patch=(8, 8, 8), on_host=True)(network, image)
    assert on_host.device.type == "cpu"
    torch.testing.assert_close(on_host, SlidingWindow(patch=(8, 8, 8))(network, image).cpu())


class Sided(nn.Module):
    """Knows a left and a right by the order of i, j, k, as a network that was trained with sides does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        self.seen.append(window.clone())
        ramp = torch.arange(window.shape[2]).float().reshape(1, 1, -1, 1, 1)
        return torch.cat([window, window * ramp, window * window], 1)


def mirrored_window(axes, pairs=(), patch=(6, 5, 4)):
    window = SlidingWindow(patch=patch, mirror=True)
    window.set_mirroring(axes, pairs)
    return window


@pytest.mark.parametrize(("axes", "count"), [(("j",), 2), (("k", "i"), 4), (("i", "j", "k"), 8)])
def test_mirrored_logits_are_the_mean_over_every_choice_of_the_axes(axes, count):
    image, network = torch.rand(1, 1, 6, 5, 4), Sided()
    logits = mirrored_window(axes)(network, image)
    assert len(network.seen) == count
    dims = [2 + "ijk".index(axis) for axis in sorted(axes)]
    chosen = [[dim for n, dim in enumerate(dims) if number >> n & 1] for number in range(count)]
    expected = torch.stack([Sided()(image.flip(each)).flip(each) for each in chosen]).mean(0)
    torch.testing.assert_close(logits, expected)
    for each in chosen:
        assert any(torch.equal(image.flip(each), seen) for seen in network.seen)


@pytest.mark.parametrize("axes", [("i",), ("k",)])
def test_sides_change_places_in_mirrored_logits(axes):
    image = torch.rand(1, 1, 6, 5, 4)
    logits = mirrored_window(axes, [(1, 2)])(Sided(), image)
    dims = [2 + "ijk".index(axis) for axis in axes]
    expected = (Sided()(image) + Sided()(image.flip(dims)).flip(dims)[:, [0, 2, 1]]) / 2
    torch.testing.assert_close(logits, expected)


def test_half_a_turn_leaves_the_sides():
    image = torch.rand(1, 1, 6, 5, 4)
    logits = mirrored_window(("i", "j"), [(1, 2)])(Sided(), image)
    seen = {dims: Sided()(image.flip(dims)).flip(dims) for dims in [(), (2,), (3,), (2, 3)]}
    kept, swapped = seen[()] + seen[2, 3], seen[2,] + seen[3,]
    torch.testing.assert_close(logits, (kept + swapped[:, [0, 2, 1]]) / 4)


def test_mirroring_a_symmetric_network_changes_nothing():
    image = torch.randn(1, 2, 17, 9, 6)
    logits = mirrored_window(("i", "j", "k"))(nn.Identity(), image)
    torch.testing.assert_close(logits, image, rtol=0, atol=1e-5)


def test_mirroring_needs_axes_that_training_mirrored():
    with pytest.raises(ValueError, match=r"it mirrored none; write mirror: false"):
        SlidingWindow(mirror=True).set_mirroring(())
    with pytest.raises(ValueError, match="call set_mirroring"):
        SlidingWindow(patch=(4, 4, 4), mirror=True)(nn.Identity(), torch.zeros(1, 1, 4, 4, 4))


def test_without_mirror_nothing_is_mirrored():
    window, network = SlidingWindow(patch=(6, 5, 4)), Sided()
    window.set_mirroring(("i", "j", "k"), [(1, 2)])
    window(network, torch.rand(1, 1, 6, 5, 4))
    assert len(network.seen) == 1


def test_a_window_keeps_to_the_multiple_of_each_axis():
    class Uneven(nn.Identity):
        size_multiple = (4, 4, 1)

    network = Uneven()
    assert SlidingWindow(patch=(8, 4, 3))(network, torch.rand(1, 1, 9, 8, 3)).shape == (1, 1, 9, 8, 3)
    with pytest.raises(ValueError, match=r"multiples of \(4, 4, 1\), found patch \[8, 6, 3\]; try patch: \[8, 8, 3\]"):
        SlidingWindow(patch=(8, 6, 3))(network, torch.rand(1, 1, 9, 8, 3))
