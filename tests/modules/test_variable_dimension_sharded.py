import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("variable_dimension_run.py")


def run(strategy, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *(launch if strategy == "fsdp" else []), str(SCRIPT), strategy, str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    told = json.loads((folder / strategy / "taps.json").read_text(encoding="utf-8"))
    return torch.load(folder / f"{strategy}.ckpt", weights_only=True), told


@pytest.mark.slow
def test_sharded_processes_measure_and_fill_as_one(tmp_path):
    (alone, told), (both, told_by_both) = run("alone", tmp_path), run("fsdp", tmp_path)
    assert both["lightning_atlas"]["taps"].keys() == alone["lightning_atlas"]["taps"].keys()
    for name, taps in alone["lightning_atlas"]["taps"].items():
        assert torch.equal(both["lightning_atlas"]["taps"][name], taps)
    stem = both["state_dict"]["network.backbone.conv1.weight"]
    assert not stem[..., [0, 6]].any()
    assert stem[..., 1:6].flatten(0, 3).any(0).all()
    torch.testing.assert_close(stem, alone["state_dict"]["network.backbone.conv1.weight"], rtol=0, atol=1e-5)
    (kernel,) = told["kernels"]
    assert told_by_both["kernels"][kernel]["untrained"] == {"k": [0, 6]}
    assert told_by_both["kernels"][kernel]["strength"] == pytest.approx(told["kernels"][kernel]["strength"], rel=1e-3)
