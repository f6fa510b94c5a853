import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("regularised_run.py")


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
    return torch.load(folder / f"{strategy}.pt", weights_only=True)


@pytest.mark.slow
def test_two_sharded_processes_train_save_and_resume_as_one(tmp_path):
    alone, both = run("alone", tmp_path), run("fsdp", tmp_path)
    torch.testing.assert_close(alone["rest"], alone["whole"], rtol=0, atol=0)
    torch.testing.assert_close(both["rest"], both["whole"], rtol=0, atol=1e-7)
    torch.testing.assert_close(both["whole"], alone["whole"], rtol=0, atol=1e-5)
    kept = [torch.load(tmp_path / f"{strategy}.ckpt", weights_only=True) for strategy in ("alone", "fsdp")]
    for key in ("state_dict", "raw_weights"):
        torch.testing.assert_close(kept[1][key], kept[0][key], rtol=0, atol=1e-5)
    assert kept[1]["callbacks"].keys() == kept[0]["callbacks"].keys()
