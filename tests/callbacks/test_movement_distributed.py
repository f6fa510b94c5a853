import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_atlas.networks import UNet

SCRIPT = Path(__file__).with_name("movement_run.py")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_tell_how_far_the_whole_went(strategy, tmp_path):
    torch.manual_seed(1)
    given = UNet(features=(4, 6)).state_dict()
    torch.save(given, tmp_path / "weights.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [strategy, tmp_path / "weights.pt", tmp_path / "out.pt"]
    done = subprocess.run(
        [*map(str, [*command, *words])],
        env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("moved away from the weights") == 1
    assert (tmp_path / "movement.json").is_file()
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    stages = {each["stage"]: each for each in found["stages"]}
    assert list(stages) == ["encoder.0", "encoder.1", "decoder.0", "head"]
    for name, each in stages.items():
        inside = [key for key in given if key.startswith(f"{name}.")]
        moved = sum((found["weights"][key] - given[key]).square().sum().item() for key in inside)
        whole = sum(given[key].square().sum().item() for key in inside)
        assert each["distance"] == pytest.approx((moved / whole) ** 0.5, rel=1e-4)
        assert each["distance"] > 1e-3
        assert 0 < each["cka"] < 1
    # The first process measures on its own first batch, and no more: 8 x 8 x 8 voxels of one image.
    assert [each["voxels"] for each in stages.values()] == [300, 64, 300, 300]
