import itertools
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_atlas.callbacks.memory import asked_bytes, held_bytes, in_words, memory_advice, peak_bytes, shrink


def refused(request):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        request()
    return caught.value


def test_asked_is_read_from_what_torch_and_numpy_really_say():
    assert asked_bytes(refused(lambda: torch.empty(2**48, dtype=torch.uint8))) == 2**48
    assert asked_bytes(refused(lambda: np.empty(2**48, dtype=np.uint8))) == 2**48
    # As torch.OutOfMemoryError says it on a GPU.
    assert asked_bytes(RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")) == 2.5 * 2**30
    assert asked_bytes(MemoryError()) is None


@pytest.mark.parametrize(("batch", "size", "voxels"), [(8, (64, 64, 16), 70_000), (2, (96, 96, 96), 300_000)])
def test_shrink_takes_the_largest_batch_that_fits_and_only_then_smaller_patches(batch, size, voxels):
    new_batch, new_size = shrink(batch, size, voxels, 8)
    assert new_batch * math.prod(new_size) <= voxels
    assert all(new <= old and new % 8 == 0 for new, old in zip(new_size, size, strict=True))
    if new_batch > 1:
        assert new_size == size
        assert (new_batch + 1) * math.prod(size) > voxels
    else:
        # No other choice of multiples with at least these sides fits, but for the longest side.
        assert any(math.prod(np.add(new_size, step)) > voxels for step in itertools.permutations((8, 0, 0)))


def test_shrink_keeps_to_the_multiple_of_each_axis():
    assert shrink(1, (64, 64, 20), 40_000, (16, 16, 4)) == (1, (32, 48, 20))
    assert shrink(1, (16, 16, 20), 100, (16, 16, 4)) == (1, (16, 16, 4))
    assert shrink(1, (132, 132, 108), 1e6, 8, 92) == (1, (100, 100, 100))
    assert shrink(1, (132, 132, 108), 100, 8, 92) == (1, (92, 92, 92))


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_five_lines_say_what_would_fit_where_it_happened(step, module, data, make_trainer, monkeypatch):
    def fail(self, batch, batch_idx):
        raise MemoryError("Unable to allocate 3.00 GiB for an array")

    fail.__code__ = fail.__code__.replace(co_name=step)
    monkeypatch.setattr(type(module), step, fail)
    module.network.size_multiple = 4
    trainer = make_trainer()
    lines = memory_advice(refused(lambda: trainer.fit(module, data)), trainer)
    assert len(lines) <= 5
    assert "asked 3.22 GB" in lines[0]
    assert "free" in lines[0]
    if step == "training_step":
        assert lines[-2:] == ["--data.init_args.batch_size 1", "--data.init_args.patches.init_args.size [8, 8, 8]"]
    else:
        prefix = "--model.init_args.task.init_args.window.init_args"
        assert lines[-2:] == [f"{prefix}.batch_size 2", f"{prefix}.patch [8, 8, 8]"]


def test_one_patch_becomes_smaller_by_the_networks_multiple(module, data, make_trainer):
    data.batch_size, module.network.size_multiple = 1, 4
    trainer = make_trainer()
    trainer.fit(module, data)
    lines = memory_advice(MemoryError(), trainer)
    assert lines[-1] == "--data.init_args.patches.init_args.size [4, 8, 8]"
    data.patches = SimpleNamespace(size=(4, 4, 4))
    assert "the least" in memory_advice(MemoryError(), trainer)[-1]


def test_whole_volumes_move_to_the_host_before_windows_shrink(module, data, make_trainer, monkeypatch):
    def validation_step(self, batch, batch_idx):
        raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB")

    monkeypatch.setattr(type(module), "validation_step", validation_step)
    module.task.window.on_host = False
    trainer = make_trainer()
    error = refused(lambda: trainer.fit(module, data))
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
    prefix = "--model.init_args.task.init_args.window.init_args"
    assert memory_advice(error, trainer)[-1] == f"{prefix}.on_host true"
    module.task.window.on_host = True
    assert memory_advice(error, trainer)[-1].startswith(f"{prefix}.patch")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")  # noqa: PTH110
def test_held_memory_grows_with_what_is_held():
    device = torch.device("cpu")
    before = held_bytes(device)
    block = torch.ones(30_000_000)
    held, peak = held_bytes(device), peak_bytes(device)
    assert before is not None
    assert held is not None
    assert peak is not None
    assert held - before == pytest.approx(block.nbytes, rel=0.05)
    assert peak >= 0.99 * held


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1.3e9, "1.30 GB"), (15.2e6, "15.2 MB"), (9.99e6, "10.0 MB"), (999e6, "1.00 GB")]
)
def test_sizes_read_as_people_say_them(size, text):
    assert in_words(size) == text
