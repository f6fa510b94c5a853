import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed_run.py")


def run(strategy, optimizer, folder):
    output = folder / f"{strategy}.pt"
    launch(folder, strategy, SCRIPT, strategy, optimizer, output)
    return torch.load(output, weights_only=True)


def launch(folder, strategy, script, *words):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = (
        [] if strategy == "alone" else ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *processes, str(script), *map(str, words)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_processes_train_as_one(optimizer, tmp_path):
    alone = run("alone", optimizer, tmp_path)
    for strategy in ("ddp", "fsdp", "fsdp-resumed"):
        both = run(strategy, optimizer, tmp_path)
        torch.testing.assert_close(both["losses"], alone["losses"], rtol=0, atol=1e-5)
        if optimizer == "sgd":
            torch.testing.assert_close(both["weights"], alone["weights"], rtol=0, atol=1e-5)
    assert alone["losses"][-1] != alone["losses"][0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_score_with_the_same_running_statistics(strategy, tmp_path):
    output = tmp_path / "apart"
    launch(tmp_path, strategy, SCRIPT.with_name("buffers_run.py"), strategy, output)
    second = torch.load(f"{output}.1", weights_only=True)
    assert max(second["trained"]) > 0  # each process saw patches of its own
    assert len(second["scored"]) >= 3
    assert max(second["scored"]) == 0
