import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("detection_run.py")


def run(kind, strategy, processes, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), kind, strategy, str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{kind}-{strategy}{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_learn_boxes_as_one_also_where_an_image_has_none(tmp_path):
    (alone,) = run("retina", "alone", 1, tmp_path)
    with_boxes, without = alone["gradients"][0], alone["gradients"][2]
    assert min(with_boxes.values()) > 0
    assert without["regression_head.bbox_reg.weight"] == 0
    assert without["classification_head.cls_logits.weight"] > 0
    for strategy in ("ddp", "fsdp"):
        first, second = run("retina", strategy, 2, tmp_path)
        torch.testing.assert_close(first["losses"], alone["losses"], rtol=0, atol=1e-5)
        torch.testing.assert_close(first["gradients"], alone["gradients"], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=1e-5)
        assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
        scored = {name: score for name, score in alone["scores"].items() if not math.isnan(score)}
        assert scored
        assert (first["predicted"], second["predicted"]) == (2, 1)
        assert scored.items() <= first["scores"].items()
        assert scored.items() <= second["scores"].items()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_boxes_in_two_stages_also_where_an_image_has_none(strategy, tmp_path):
    """What is learned from is drawn at random, so there is nothing to compare with but each other."""
    first, second = run("slices", strategy, 2, tmp_path)
    assert len(first["losses"]) == len(first["gradients"]) == 8
    assert (first["predicted"], second["predicted"]) == (2, 1)
    assert all(math.isfinite(loss) for loss in first["losses"])
    assert all(max(each[name] for each in first["gradients"]) > 0 for name in first["weights"])
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
