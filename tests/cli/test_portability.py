import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_atlas

SCRIPT = """
import signal
import sys

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lightning_atlas.cli import main

if __name__ == "__main__":
    # On Windows there is no SIGUSR1, and Lightning leaves signals alone.
    del signal.SIGUSR1
    _SignalConnector.register_signal_handlers = _SignalConnector.teardown = lambda self: None
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_fit_and_predict_need_no_sigusr1_no_wide_code_page_and_no_plain_folder(tmp_path):
    folder = tmp_path / "Prüfung eins"
    scans = folder / "scans à moi"
    scans.mkdir(parents=True)
    shutil.copy(Path(lightning_atlas.__file__).parent / "data" / "embedded" / "spine_ct.nii.gz", scans / "été 1.nii.gz")
    (folder / "as on windows.py").write_text(SCRIPT, encoding="utf-8")

    def run(*words):
        command = [sys.executable, "as on windows.py", *words]
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode("cp1252")[-2000:]

    run("fit", "target/abdomen_mr", "machine/smoke", "--data.num_workers=1")
    (made,) = folder.glob("runs/*/*")
    # The smoke cohort's warps bring air into a scan that has none, and with it other percentiles.
    run("predict", str(made), "--input", scans.name, "--output", "prédit", "--allow", "intensities")
    assert (folder / "prédit" / "été 1.nii.gz").is_file()
