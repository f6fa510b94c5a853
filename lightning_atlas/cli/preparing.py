"""The verb `prepare`: look a dataset through, list it, describe it, write a recipe for it, and keep it ready."""

import argparse
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from tqdm import tqdm

from lightning_atlas.callbacks.memory import in_words
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import Request
from lightning_atlas.cli.runner import prepare_recipe
from lightning_atlas.data.cases import Case
from lightning_atlas.data.formats import read_header
from lightning_atlas.data.labels.sides import split_cases
from lightning_atlas.data.labels.vocabulary import load_vocabulary, vocabularies
from lightning_atlas.data.sources.layouts import LAYOUTS, LayoutResult, read_layout
from lightning_atlas.data.sources.write_manifest import write_manifest
from lightning_atlas.data.store.keys import store_root
from lightning_atlas.data.survey.checks import Defect, Report, check_cases
from lightning_atlas.data.survey.damage import is_crop
from lightning_atlas.data.survey.fingerprint import Fingerprint, fingerprint
from lightning_atlas.data.survey.fingerprint_sheet import write_sheet
from lightning_atlas.data.survey.one_pass import check_and_measure
from lightning_atlas.data.survey.proposal import costs, propose
from lightning_atlas.data.survey.write_recipe import Start, write_recipe
from lightning_atlas.intake import read_weights, zoo

SHOWN = 40
"""Lines of notes; defects are all shown."""
SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Words(argparse.ArgumentParser):
    """Says what is wrong in this package's way."""

    def error(self, message: str) -> NoReturn:
        """Raise what the command line prints."""
        raise CommandError(f"prepare: {message}\nwrite `prepare PATH`; `prepare --help` lists the options")


@dataclass
class Dataset:
    """What was found at a path.

    Args:
        cases: Its scans.
        notes: Lines for a person.
        defects: Scans that could not become cases.
        listed: The table in which the cases stand already.
    """

    cases: list[Case]
    notes: list[str]
    defects: list[Defect]
    listed: Path | None = None


def run_prepare(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After it.

    Raises:
        CommandError: There is no dataset, or it has defects.
    """
    options = prepare_parser().parse_args(list(words))
    if options.path.suffix in (".yaml", ".yml"):
        prepare_recipe(Request("fit", configs=[options.path]))
        return
    try:
        _prepare(options)
    except ValueError as error:
        raise CommandError(str(error)) from error


def prepare_parser() -> argparse.ArgumentParser:
    """Return what reads the words after the verb."""
    parser = Words(prog="lightning-atlas prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("path", type=Path, help="a dataset's folder, a manifest, or a recipe whose scans to prepare")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="how the dataset lies on disk; guessed if not given")
    parser.add_argument("--values", type=_values, help="names of the values: '{\"liver\": 1}', or a JSON file of that")
    parser.add_argument("--vocabulary", help="what the names mean, and their values: " + ", ".join(vocabularies()[:4]))
    parser.add_argument("--modality", help="CT, MR or another short name, where the files do not say")
    parser.add_argument("--check", action="store_true", help="only look for defects: exit code 2 if there are any")
    parser.add_argument("--skip-bad", action="store_true", help="go on without the subjects that have defects")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read and written, and stop")
    parser.add_argument("--output", type=Path, help="the manifest to write; by default NAME.json in this folder")
    parser.add_argument("--recipe", type=Path, help="a recipe to write, for these scans; they are prepared by it")
    parser.add_argument("--overwrite", action="store_true", help="replace a manifest and a recipe that are there")
    parser.add_argument("--weights", help="what the recipe starts from: a name of the zoo, or a checkpoint")
    parser.add_argument("--memory", type=_bytes, help="what a run may take, such as 24GB; by default 2 GB")
    parser.add_argument("--split-sides", nargs="+", default=[], metavar="NAME", help="structures to part into sides")
    parser.add_argument("--workers", type=int, help="processes that read; by default as many as processors")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    dataset = _find(options)
    for note in dataset.notes[:SHOWN]:
        print(f"note: {note}")
    if options.dry_run:
        print("\n".join(_plan(options, dataset)))
        return
    table = _table(options, dataset)
    cases, measured = _sound(dataset, options)
    if options.check:
        return
    if options.split_sides:
        cases, notes = split_cases(cases, options.split_sides, table.with_name(f"{table.stem}_sides"))
        print("\n".join(notes))
    measured = measured or fingerprint(cases, options.workers or 0)
    print("\n".join(measured.report()))
    written = _write(measured, cases, dataset, table)
    if options.recipe:
        written.append(_recipe(options, measured, table))
    print("written:", *written, sep="\n  ")
    if options.recipe:
        prepare_recipe(Request("fit", configs=[options.recipe]))
        print(f"next: lightning-atlas fit {options.recipe}")
    elif skipped := len(dataset.cases) - len(cases):
        print(f"{skipped} subjects were left out")


def _table(options: argparse.Namespace, dataset: Dataset) -> Path:
    """Return where the scans are to be listed; what is there already may have been edited by hand."""
    beside = options.recipe or Path(options.path.resolve().name)
    name = beside.stem if options.recipe or options.path.is_file() else beside.name
    table = options.output or dataset.listed or beside.with_name(f"{name}.json")
    there = [each for each in (table, options.recipe) if each and each != dataset.listed and each.exists()]
    if there and not options.overwrite and not options.check:
        raise CommandError(f"{there[0]} exists: write --overwrite to replace it, or give another name")
    return table


def _find(options: argparse.Namespace) -> Dataset:
    if not options.path.exists():
        raise CommandError(f"there is no {options.path} (seen from {Path.cwd()})")
    given = load_vocabulary(options.vocabulary) if options.vocabulary else None
    values = options.values or (given.values if given else None)
    result = read_layout(options.path, options.layout, values=values)
    if options.recipe and (what := _recipe_elsewhere(options.path, result)):
        raise CommandError(f"{options.path} holds {what}")
    told = {"vocabulary": options.vocabulary, "modality": options.modality or (given.modality if given else None)}
    told = {key: value for key, value in told.items() if value}
    listed = options.path if result.layout == "manifest" and not told else None
    return Dataset([replace(case, **told) for case in result.cases], result.notes, list(result.defects), listed)


def _recipe_elsewhere(path: Path, result: LayoutResult) -> str:
    """Return what a dataset holds that the rules of a new recipe do not fit, and which one does; empty if they fit."""
    source = f"--data.source.path {path}"
    if result.layout in ("imagefolder", "coco"):
        return (
            f"photographs ({result.layout}), which are read as they are: leave out --recipe; of a folder for each "
            f"class: fit pretrain/vdt_cifar10 {source}"
        )
    source += f" --data.source.layout {result.layout}"
    if any(is_crop(file) for case in result.cases for file in case.channels.values()):
        published = " --data.fold null --data.splits.val_share 0" if result.layout == "lidc_by_nodule" else ""
        return (
            "crops of LIDC, whose values are no Hounsfield units: leave out --recipe; target/lidc_segmentation or\n"
            f"fit target/lidc_classification {source}{published}"
        )
    if any(case.slab for case in result.cases):
        return f"slices with boxes, and nothing is drawn: leave out --recipe, and\nfit target/deeplesion {source}"
    return ""


def _sound(dataset: Dataset, options: argparse.Namespace) -> tuple[list[Case], Fingerprint | None]:
    """Return the cases without defects, and what they are like where one reading is to tell; print what was found."""
    if options.check or options.split_sides:
        report, measured = _checked(dataset.cases, options.workers or os.cpu_count() or 1), None
    else:
        report, measured = check_and_measure(dataset.cases, options.workers or 0)
    report = Report(report.cases, (*dataset.defects, *report.defects), report.notes)
    print(report)
    if report.defects and not options.skip_bad:
        raise CommandError(
            f"{options.path}: {len(report.defects)} defects, one on each line above; mend them, or go on without "
            f"{len(report.bad_subjects)} subjects: --skip-bad"
        )
    cases = [case for case in dataset.cases if case.subject not in report.bad_subjects]
    if report.defects:
        print(f"left out: {', '.join(sorted(report.bad_subjects))}")
    if not cases:
        raise CommandError(f"{options.path}: no sound scan is left")
    return cases, measured


def _checked(cases: Sequence[Case], workers: int) -> Report:
    with tqdm(total=len(cases), desc="check", unit="scan", leave=False, disable=len(cases) < 2) as bar:

        def tell(done: int, _: int) -> None:
            bar.update(done - bar.n)

        return check_cases(cases, workers, tell)


def _write(measured: Fingerprint, cases: Sequence[Case], dataset: Dataset, table: Path) -> list[Path]:
    written = []
    if dataset.listed != table or cases != dataset.cases:
        if table == dataset.listed:
            raise CommandError(f"{table} would lose or change subjects; name another manifest: --output FILE.json")
        write_manifest(table, cases, table.stem)
        written.append(table)
    numbers, sheet = (table.with_name(f"{table.stem}_fingerprint{ending}") for ending in (".json", ".png"))
    measured.write(numbers)
    write_sheet(measured, sheet)
    return [*written, numbers, sheet]


def _recipe(options: argparse.Namespace, measured: Fingerprint, table: Path) -> Path:
    start = None
    if options.weights:
        source, network = read_weights(options.weights), _network_of(options.weights)
        if source.contract is None or network is None:
            missing = "does not say what it expects of an image" if network else "lies in no run folder with a recipe"
            raise CommandError(f"{options.weights} {missing}: write the recipe without --weights, and add them by hand")
        start = Start(options.weights, source.contract, network)
    contract = start.contract if start else None
    features = start.network.get("init_args", {}).get("features", [16])[0] if start else 16
    proposal = propose(measured, contract, options.memory, features)
    for line in costs(measured, contract) if contract else []:
        print(f"what the weights expect costs: {line}")
    write_recipe(options.recipe, table, measured, proposal, start=start)
    return options.recipe


def _network_of(weights: str) -> dict[str, Any] | None:
    """Return the network that weights are of: from the zoo, or from the recipe of the run in which they lie."""
    if entry := zoo.entries().get(weights):
        return entry.network
    recipe = Path(weights).absolute().parents[1] / "recipe.yaml"
    if not recipe.is_file():
        return None
    return yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]["init_args"]["network"]


def _plan(options: argparse.Namespace, dataset: Dataset) -> list[str]:
    """Return what would happen, from headers alone."""
    files = {path for case in dataset.cases for path in case.channels.values()}
    files |= {mark.file for case in dataset.cases for mark in case.marks.values()}
    files |= {case.label for case in dataset.cases if case.label}
    files |= {each for case in dataset.cases if case.slab for each in case.slab.files(case.channels["image"])}
    read = sum(path.stat().st_size for path in files if path.is_file())
    scans = [(path, case.slab) for case in dataset.cases for path in case.channels.values() if path.exists()]
    voxels = [math.prod(read_header(path).shape) * (slab.planes if slab else 1) for path, slab in scans]
    stored = sum(voxels) * (4 + 1)
    return [
        f"{len(dataset.cases)} scans in {len(files)} files, {in_words(read)}, would be read and checked",
        f"memory: about {in_words(max(voxels, default=0) * (4 * 3 + 8))} for each process, for the largest scan",
        f"disk: at most {in_words(stored)} on the scans' own grids, in {store_root()}"
        + ("" if options.recipe else "; nothing there without --recipe"),
    ]


def _values(word: str) -> dict[str, int]:
    text = Path(word).read_text(encoding="utf-8") if word.endswith(".json") else word
    values = json.loads(text)
    if not isinstance(values, dict) or not all(isinstance(value, int) for value in values.values()):
        raise argparse.ArgumentTypeError(f"{word!r} does not say which value each name has; write '{{\"liver\": 1}}'")
    return values


def _bytes(word: str) -> int:
    found = re.fullmatch(r"([\d.]+)\s*([KMGT]B)?", word.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{word!r} is no size; write 24GB")
    return round(float(found[1]) * SIZES[(found[2] or "").upper()])
