"""A manifest of our own, or a CSV table with the same columns."""

from pathlib import Path

from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.manifest import read_manifest
from lightning_atlas.data.sources.tables import read_json, read_rows


def is_table(path: Path) -> bool:
    """Tell whether a file is a CSV table of subjects and images, or JSON with `subjects`."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".csv":
        columns = {column.partition(":")[0] for column in read_rows(path)[0][1]}
        return {"subject", "image"} <= columns
    document = read_json(path) if path.suffix.lower() == ".json" else None
    return isinstance(document, dict) and "subjects" in document


def read_table(path: Path) -> LayoutResult:
    """List the subjects of a manifest; whether their files are there is for the checks to say."""
    return LayoutResult("manifest", [case for _, case in read_manifest(path)])


TABLE = Layout("manifest", "a .json or .csv table of subjects", is_table, read_table)
