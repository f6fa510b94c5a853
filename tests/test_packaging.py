"""What a person gets who installs the wheel and has no checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command, **options) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **options
    )
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def build(source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the scripts folder of an environment with this wheel; the libraries are those of the running one."""
    folder = tmp_path_factory.mktemp("fresh environment")
    paths = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    scripts, packages = Path(paths["scripts"]), Path(paths["purelib"])
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "libraries.pth").write_text("\n".join(sorted(libraries)), encoding="utf-8")
    origin = run(scripts / "python", "-c", "import lightning_atlas; print(lightning_atlas.__file__)", cwd=folder)
    assert Path(origin.strip()).is_relative_to(packages)
    return scripts


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_wheel_carries_every_recipe_and_every_file_of_the_package(wheel):
    carried = contents(wheel)
    for folder, prefix in (
        (ROOT / "recipes", "lightning_atlas/recipes"),
        (ROOT / "lightning_atlas", "lightning_atlas"),
    ):
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert carried[f"{prefix}/{path.relative_to(folder).as_posix()}"] == path.read_bytes()


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path / "dist", cwd=ROOT)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    assert contents(build(archive, tmp_path / "wheel")) == contents(wheel)


def test_a_packaged_recipe_runs_from_an_empty_folder(installed, tmp_path):
    printed = run(installed / "python", "-m", "lightning_atlas", "fit", "quickstart", "machine/smoke", cwd=tmp_path)
    assert re.search(r"lightning_atlas[/\\]recipes[/\\]machine[/\\]smoke\.yaml", printed)
    assert list(tmp_path.glob("runs/**/recipe.yaml"))


def test_the_script_lists_the_packaged_recipes(installed, tmp_path):
    printed = run(installed / "lightning-atlas", "recipes", "list", cwd=tmp_path)
    listed = {line.split()[0] for line in printed.splitlines()}
    assert listed == {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in ROOT.glob("recipes/**/*.yaml")
    }
