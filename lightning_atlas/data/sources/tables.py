"""JSON and CSV files that people write, read so that a fault in them is told with its place."""

import csv
import io
import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return what a JSON file says.

    Raises:
        ValueError: It is no JSON, has one key twice, or a number that JSON does not know (NaN).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in found if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} is twice in one object; keep one of them")
        return found

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no number of JSON; write null, or a number")

    text = _text(path)
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the lines of a CSV table with their numbers: column -> cell, without the spaces around it.

    Cells are divided by whichever of `,`, `;` and the tabulator is most frequent in the first line.

    Raises:
        ValueError: It has no lines, one column twice, or a line with more cells than there are columns.
    """
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))
    try:
        columns = [cell if ":" in cell else cell.strip() for cell in next(reader, [])]  # mask:Liver with its space
        if twice := sorted({column for column in columns if column and columns.count(column) > 1}):
            raise ValueError(f"{path} has the column {twice[0]!r} twice")
        rows = []
        for cells in reader:
            if len(cells) > len(columns):
                raise ValueError(f"{path}, line {reader.line_num}, has {len(cells)} cells for {len(columns)} columns")
            if any(cell.strip() for cell in cells):
                row = dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, cells), strict=False))
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}, is no line of a table: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no line below its first, which names the columns")
    return rows


def check_keys(found: Collection[str], known: Collection[str], place: str) -> None:
    """Refuse a key that nobody reads.

    Raises:
        ValueError: There is one; the message has the nearest known key.
    """
    for key in found:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{place}: unknown {key!r}; {advice}")


def expect(value: Any, kind: type, place: str, example: str) -> Any:
    """Return the value if it is of the kind; `true` is no number.

    Raises:
        ValueError: It is of another kind.
    """
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{place} is {value!r}; write it like {example}")
    return value


def named_values(found: Any, place: str) -> dict[str, int]:
    """Return name -> value of a table of labels.

    Raises:
        ValueError: A value is no whole number above 0, or two names have one value.
    """
    values = expect(found, Mapping, place, '{"liver": 1, "spleen": 2}')
    taken: dict[int, str] = {}
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{place}: {name!r} has the value {value!r}; values are whole numbers from 1")
        if value in taken:
            raise ValueError(f"{place}: {taken[value]!r} and {name!r} both have the value {value}")
        taken[value] = name
    return dict(values)


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"there is no table {path} (seen from {Path.cwd()})")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; save it as such") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); see to its permissions") from error
