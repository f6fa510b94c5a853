"""LIDC-IDRI as crops around its nodules, with the table of the readers' opinions and the published division.

Source: https://github.com/M3DV/ACSConv (experiments/lidc/lidc_dataset.py) for the files and for what is benign and
malign; https://github.com/urmagicsmine/CSPR (data/lidc, medseg/data/lidc/info) for the columns of the tables.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lightning_atlas.data.cases import Mark, Split
from lightning_atlas.data.formats.nodule import ENDING
from lightning_atlas.data.sources.layouts.listing import visible
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import read_rows
from lightning_atlas.data.survey.checks import Defect

CROPS = "nodule"
OPINIONS = Path("info", "lidc_nodule_info_new_with_subset.csv")
PATIENTS = Path("info", "lidc_patient_info_new_with_subset.csv")
DIVISION = "train_test_split.csv"
MALIGNANCY = {"1": 0, "2": 0, "4": 1, "5": 1}
"""The readers' most frequent opinion -> 0 benign, 1 malign; 3 and 0 are neither."""
UNKNOWN = -1


def is_lidc(path: Path) -> bool:
    """Tell whether there are crops and the table of opinions."""
    return (path / OPINIONS).is_file() and _crops(path) != []


def read_lidc(path: Path) -> LayoutResult:
    """List the nodules by patient, whose folds are those of the table of patients; the published division is not taken.

    Raises:
        ValueError: A table lacks a column.
    """
    result = LayoutResult("lidc", target_names=("benign", "malign"))
    opinions = _column(path / OPINIONS, "index", "uid", "malignancy_mode")
    folds = _column(path / PATIENTS, "uid", "subset") if (path / PATIENTS).is_file() else {}
    for crop in _crops(path):
        name = crop.name.removesuffix(ENDING)
        if name not in opinions:
            result.defects.append(Defect(crop, f"has no line in {path / OPINIONS}", "move the crop away", name))
            continue
        patient, opinion = opinions[name]
        subset = folds.get(patient, ("",))[0].removeprefix("subset")
        facts = {
            "patient": patient,
            "modality": "CT",
            "target": MALIGNANCY.get(opinion, UNKNOWN),
            "fold": int(subset) - 1 if subset.isdecimal() else None,
        }
        result.add(name, "train", crop, {"masks": {"nodule": Mark(crop, 1)}}, **facts)
    told = [case.target for case in result.cases]
    result.notes.append(f"{told.count(0)} nodules are benign, {told.count(1)} malign, {told.count(UNKNOWN)} neither")
    return result


def read_lidc_by_nodule(path: Path) -> LayoutResult:
    """List the nodules in the published division, in which a nodule is a patient of its own.

    Raises:
        ValueError: A table lacks a column.
    """
    result = read_lidc(path)
    splits = _division(path / DIVISION)
    divided = [case for case in result.cases if case.subject in splits]
    training, testing = (
        {case.patient for case in divided if splits[case.subject] == split} for split in ("train", "test")
    )
    result.layout = "lidc_by_nodule"
    result.cases = [replace(case, split=splits[case.subject], patient=None, fold=None) for case in divided]
    result.notes.append(
        f"{DIVISION} leaks: {len(training & testing)} of the {len(testing)} patients in its test column are in train "
        "too; its scores compare with published ones and say little of new patients (layout: lidc divides by patient)"
    )
    return result


def _crops(path: Path) -> list[Path]:
    return [file for file in visible(path / CROPS) if file.name.lower().endswith(ENDING)]


def _division(file: Path) -> dict[str, Split]:
    columns: tuple[Split, Split] = ("train", "test")
    rows = _rows(file, *columns)
    return {row[name].removesuffix(ENDING): name for name in columns for row in rows if row[name]}


def _column(file: Path, key: str, *columns: str) -> Mapping[str, tuple[str, ...]]:
    return {row[key]: tuple(row[name] for name in columns) for row in _rows(file, key, *columns)}


def _rows(file: Path, *columns: str) -> list[dict[str, str]]:
    rows = [row for _, row in read_rows(file)]
    if missing := [name for name in columns if name not in rows[0]]:
        raise ValueError(f"{file} has no column {missing[0]!r}; it has {', '.join(rows[0])}")
    return rows


LIDC = Layout("lidc", f"{CROPS}/NAME.npz and {OPINIONS.as_posix()}", is_lidc, read_lidc)
LIDC_BY_NODULE = Layout(
    "lidc_by_nodule", f"the same, divided as published in {DIVISION}", lambda path: False, read_lidc_by_nodule
)
