"""Layouts in which datasets lie on disk: each is a function from a folder to cases, and a guess whether it is one."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from lightning_atlas.data.sources.layouts.bids import BIDS
from lightning_atlas.data.sources.layouts.case_folders import ABDOMENATLAS, TOTALSEGMENTATOR_CT_MR
from lightning_atlas.data.sources.layouts.coco import COCO
from lightning_atlas.data.sources.layouts.deeplesion import DEEPLESION
from lightning_atlas.data.sources.layouts.flat import FLAT
from lightning_atlas.data.sources.layouts.imagefolder import IMAGEFOLDER
from lightning_atlas.data.sources.layouts.lidc import LIDC, LIDC_BY_NODULE
from lightning_atlas.data.sources.layouts.listed import DECATHLON, LISTED
from lightning_atlas.data.sources.layouts.listing import visible
from lightning_atlas.data.sources.layouts.names import rename, spelling_notes
from lightning_atlas.data.sources.layouts.nnunet import NNUNET
from lightning_atlas.data.sources.layouts.pair import PAIR
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.layouts.saros import SAROS
from lightning_atlas.data.sources.layouts.slicer import SLICER
from lightning_atlas.data.sources.layouts.table import TABLE

__all__ = ["LAYOUTS", "Layout", "LayoutResult", "read_layout"]

LAYOUTS = {
    layout.name: layout
    for layout in (
        *(ABDOMENATLAS, TOTALSEGMENTATOR_CT_MR, NNUNET, DECATHLON, LISTED, BIDS, PAIR, SLICER, FLAT),
        *(SAROS, LIDC, LIDC_BY_NODULE, IMAGEFOLDER, COCO, DEEPLESION, TABLE),
    )
}


def read_layout(
    path: Path,
    layout: str | None = None,
    aliases: Mapping[str, str] | None = None,
    values: Mapping[str, int] | None = None,
) -> LayoutResult:
    """List the cases of a dataset as it lies on disk; headers are read at most.

    Args:
        path: Its folder, or the file that lists it.
        layout: Name of the layout; `None` guesses it, and says so in a note.
        aliases: Name in the files -> name to read it as.
        values: Name -> value of label maps whose names stand nowhere.

    Raises:
        ValueError: There is nothing, no layout fits, several do, or a table of the dataset has a fault.
    """
    path = path.parent if path.name == "dataset.json" else path
    if not path.exists():
        raise ValueError(f"there is no folder {path} (seen from {Path.cwd()})")
    found = _guessed(path) if layout is None else _named(layout)
    result = found.read(path)
    if not result.cases and not result.defects:
        raise ValueError(f"{path} holds no case of the layout {found.name}: {found.holds}; {_seen(path)}")
    dataset = path.resolve().name
    unnamed = [bool(values and case.label and not case.values) for case in result.cases]
    cases = [
        case
        if case.dataset and not lacks
        else replace(case, dataset=case.dataset or dataset, values=dict(values or {}) if lacks else case.values)
        for case, lacks in zip(result.cases, unnamed, strict=True)
    ]
    result.cases = rename(cases, aliases) if aliases else cases
    if layout is None:
        result.notes.insert(0, f"the layout is taken to be {found.name}: {found.holds}")
    unnamed = [case.subject for case in result.cases if case.label and not case.values]
    if unnamed:
        some = ", ".join(unnamed[:5])
        result.notes.append(f"label maps of {len(unnamed)} cases have no names ({some}); give values: {{liver: 1}}")
    result.notes += [f"{name} is the union of {', '.join(parts)}" for name, parts in result.unions.items()]
    result.notes += spelling_notes(result.cases)
    return result


def _named(name: str) -> Layout:
    if name not in LAYOUTS:
        near = get_close_matches(name, LAYOUTS, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(LAYOUTS)}"
        raise ValueError(f"there is no layout {name!r}; {advice}")
    return LAYOUTS[name]


def _guessed(path: Path) -> Layout:
    fitting = [layout for layout in LAYOUTS.values() if layout.fits(path)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(layout.name for layout in fitting)
        raise ValueError(f"{path} may be {names}: {_seen(path)}; say which, for example layout: {fitting[0].name}")
    known = "\n".join(f"  {layout.name}: {layout.holds}" for layout in LAYOUTS.values())
    raise ValueError(f"{path} is of no known layout: {_seen(path)}; known are\n{known}")


def _seen(path: Path) -> str:
    if path.is_file():
        return f"it is a file called {path.name}"
    names = [f"{each.name}/" if each.is_dir() else each.name for each in visible(path)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"it holds {', '.join(names[:8])}{more}" if names else "it is empty"
