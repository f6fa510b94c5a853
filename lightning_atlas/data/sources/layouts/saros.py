"""SAROS: a folder a case, with a scan of 5 mm planes, regions and parts of the body on every fifth, and a table.

Source: https://github.com/UMEssen/saros-dataset (README, training/move_data.py, training/util.py at 14118be); Koitka et
al. 2024, https://doi.org/10.1038/s41597-024-03337-6.
"""

from pathlib import Path

from lightning_atlas.data.cases import Mark, Split
from lightning_atlas.data.formats import stem
from lightning_atlas.data.labels.vocabulary import load_vocabulary
from lightning_atlas.data.sources.layouts.listing import folders, visible
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import read_rows
from lightning_atlas.data.survey.checks import Defect

SCAN, MAPS = "image.nii.gz", {"regions": "body-regions.nii.gz", "parts": "body-parts.nii.gz"}
IGNORED = 255
"""Of planes that nobody drew."""
FOLDS: dict[str, tuple[Split, int | None]] = {
    "test": ("test", None),
    **{f"fold-{number + 1}": ("train", number) for number in range(5)},
}
"""What the table says of a case -> its split and its fold."""
COLUMNS, PATIENTS = {"id", "split"}, ("patient_id", "tcia_patient_id", "patientid", "patient")


def is_saros(path: Path) -> bool:
    """Tell whether some folder has a scan called `image.nii.gz` and one of the two label maps."""
    return any((each / SCAN).is_file() and any((each / name).is_file() for name in MAPS.values())
               for each in folders(path))  # fmt: skip


def read_saros(path: Path) -> LayoutResult:
    """List the cases with the folds and the test set of the table that was published with them.

    Raises:
        ValueError: The table names a split that is none.
    """
    result, table = LayoutResult("saros"), _table(path)
    rows = {} if table is None else {row["id"]: row for _, row in read_rows(table)}
    if table is None:
        result.notes.append(f"no table with the columns id and split lies in {path}: folds and test set are not known")
    groups = load_vocabulary("saros").groups
    for folder in (each for each in folders(path) if any((each / name).is_file() for name in MAPS.values())):
        maps = {group: folder / name for group, name in MAPS.items() if (folder / name).is_file()}
        if not (folder / SCAN).is_file():
            result.defects.append(Defect(folder, f"has no {SCAN}", "download the scan again", folder.name))
            continue
        masks = {
            name: Mark(file, value) for group, file in maps.items() for value, name in enumerate(groups[group], start=1)
        }
        row = rows.get(folder.name, {})
        said = row.get("split", "")
        if said and said not in FOLDS:
            raise ValueError(f"{table} has the split {said!r} of {folder.name}; expected {', '.join(FOLDS)}")
        split, fold = FOLDS.get(said, ("train", None))
        patient = next((cell for key, cell in row.items() if key.lower() in PATIENTS and cell), None)
        facts = {"ignore_value": IGNORED, "modality": "CT", "fold": fold, "patient": patient}
        result.add(folder.name, split, folder / SCAN, {"masks": masks}, **facts)
    if rows and (unlisted := sorted({case.subject for case in result.cases} - set(rows))):
        result.notes.append(f"{len(unlisted)} cases have no line in {table}: {', '.join(unlisted[:5])}")
    return result


def _table(path: Path) -> Path | None:
    """Return the table of folds, which people keep beside the cases or beside their folder."""
    files = (file for folder in (path, path.resolve().parent) for file in visible(folder) if file.suffix == ".csv")
    return next((file for file in files if stem(file) and _has_columns(file)), None)


def _has_columns(file: Path) -> bool:
    try:
        return set(read_rows(file)[0][1]) >= COLUMNS
    except ValueError:
        return False  # another table, which is nobody's concern here


SAROS = Layout(
    "saros", "CASE/image.nii.gz, CASE/body-regions.nii.gz, CASE/body-parts.nii.gz, and a table", is_saros, read_saros
)
