import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("pictures_run.py")


def run(strategy, processes, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), strategy, str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{strategy}{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_see_and_learn_of_pictures_what_one_does(tmp_path):
    (alone,), (first, second) = run("alone", 1, tmp_path), run("ddp", 2, tmp_path)
    assert [batch["epoch"] for batch in alone["seen"]] == [0, 0, 1, 1]
    for whole, one, other in zip(alone["seen"], first["seen"], second["seen"], strict=True):
        assert one["epoch"] == other["epoch"] == whole["epoch"]
        assert len(one["subject"]) == len(other["subject"]) == 2
        assert one["subject"] + other["subject"] == whole["subject"]
        assert torch.equal(torch.cat([one["image"], other["image"]]), whole["image"])
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=1e-5)
