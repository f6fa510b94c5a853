"""Options that nobody typed: what a run's folder and a folder of scans mean in a recipe."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import Request
from lightning_atlas.cli.run_folder import is_run, stated_contract
from lightning_atlas.data import Classes, PictureDataModule, ScanFolder


def options_of_run(request: Request) -> list[str]:
    """Return the options by which a run folder and a folder of scans come in."""
    options = [f"--ckpt_path={request.checkpoint}"] if request.checkpoint else []
    if request.input is None:
        return options
    contract = stated_contract(request.checkpoint) if request.checkpoint else {}
    options.append(f"--data.source={json.dumps(scans_of(request.input, contract.get('modality')))}")
    if contract.get("classes") and has_pictures(request.run):
        return [*options, f"--data.classes={json.dumps(contract['classes'])}"]
    predicts = contract.get("predicts", "voxels")  # of whole scans the recipe's targets say the names
    if contract.get("classes") and predicts == "voxels":  # scans without labels cannot say them
        options.append(f"--data.classes={json.dumps(classes_of(contract))}")
    elif predicts == "boxes":
        options += ["--data.classes=null", f"--data.boxes={json.dumps(boxes_of(contract))}"]
    return options


def has_pictures(run: Path | None) -> bool:
    """Tell whether a run's recipe reads photographs."""
    if run is None or not is_run(run):
        return False
    data = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")).get("data") or {}
    return str(data.get("class_path")).rpartition(".")[2] == PictureDataModule.__name__


def scans_of(folder: Path, modality: str | None) -> dict[str, Any]:
    """Return the source of the scans in a folder, as a recipe spells it.

    Raises:
        CommandError: There is no such folder.
    """
    if not folder.is_dir():
        found = "is a file; put it into one" if folder.is_file() else "does not exist"
        raise CommandError(f"--input takes a folder of scans; {folder} {found}")
    # Every argument is written out: those of a recipe's source that have the same names would stay otherwise.
    arguments = {name: each.default for name, each in inspect.signature(ScanFolder).parameters.items()}
    arguments |= {"images": str(folder), "modality": modality}
    return {"class_path": "lightning_atlas.data.ScanFolder", "init_args": arguments}


def classes_of(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Return a contract's classes as a recipe spells them."""
    names = {name: [name] for name in contract["classes"]}
    classes = Classes(names, exclusive=not contract.get("overlapping"))
    return {"class_path": "lightning_atlas.data.Classes", "init_args": asdict(classes)}


def boxes_of(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Return a contract's classes of boxes as a recipe spells them; the scans say no box."""
    return {"class_path": "lightning_atlas.data.SourceBoxes", "init_args": {"names": list(contract["classes"])}}
