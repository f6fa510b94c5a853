"""Who may import whom, what `import lightning_atlas` costs, and that every public name is there."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import lightning_atlas

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_atlas"

LEAVES = {
    "networks",
    "losses",
    "metrics",
    "scan_metrics",
    "box_metrics",
    "decisions",
    "inference",
    "contract",
    "pyramid",
}
EVERYTHING = LEAVES | {
    "types",
    "intake",
    "adaptation",
    "ranking",
    "tasks",
    "modules",
    "data",
    "callbacks",
    "study",
    "cli",
}
MAY_IMPORT = {
    "types": set(),
    **{leaf: {"types"} for leaf in LEAVES},
    "intake": {"types", *LEAVES},
    "adaptation": {"types", *LEAVES, "intake"},
    "ranking": {"types", *LEAVES},
    "tasks": {"types", *LEAVES},
    "modules": {"types", *LEAVES, "intake", "adaptation", "tasks"},
    "data": {"types", "contract"},
    "callbacks": {"types", "networks", "metrics", "scan_metrics", "box_metrics", "decisions", "contract"},
    **dict.fromkeys(("study", "cli", "__main__", "__init__"), EVERYTHING),
}
ONLY_IN = {
    "torchio": {"data"},
    "lightning": {"adaptation", "modules", "data", "callbacks", "cli", "study"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "lightning_atlas" else [origin]
            yield from ((node.lineno, name) for name in names)


def fault(part: str, name: str) -> str | None:
    """Return what is wrong with a part of the package importing a dotted name."""
    if name.startswith("."):
        return "imports are absolute within the package"
    top, *rest = name.split(".")
    if top != "lightning_atlas":
        return None if part in ONLY_IN.get(top, {part}) else f"{part} may not import {top}"
    target = lightning_atlas.PUBLIC.get(rest[0], rest[0]) if rest else "__init__"
    if target == part or target in MAY_IMPORT[part] or target.startswith("__"):
        return None
    return f"{part} may not import {target}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_the_table_allows(path):
    assert part_of(path) in MAY_IMPORT, f"{path}: {part_of(path)} has no row in the table of this test"
    found = [(line, fault(part_of(path), name)) for line, name in imports(path)]
    assert not [f"{path}:{line}: {wrong}" for line, wrong in found if wrong]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("networks", "lightning_atlas.modules"),
        ("networks", "torchio.transforms"),
        ("data", "lightning_atlas.UNet"),
        ("data", "lightning_atlas.modules.base"),
        ("tasks", "lightning_atlas.adaptation"),
        ("losses", "lightning.pytorch"),
        ("cli", ".data"),
    ],
)
def test_the_table_refuses(part, name):
    assert fault(part, name)


def test_every_dependency_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]}
    imported = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for _, name in imports(path)}
    foreign = imported - set(sys.stdlib_module_names) - {"lightning_atlas", ""}
    distributions = {name: {each.lower() for each in made_by} for name, made_by in packages_distributions().items()}
    undeclared = {name for name in foreign if not declared & distributions.get(name, set())}
    unused = declared - set().union(*(distributions.get(name, set()) for name in foreign))
    assert undeclared == set()
    assert unused <= {"tensorboard"}  # Lightning's logger imports it


CHILD = """
import sys, time
start = time.perf_counter()
import lightning_atlas
print(time.perf_counter() - start)
print(*sorted({"torch", "monai", "torchio", "lightning", "numpy"} & set(sys.modules)))
"""


def test_the_import_is_quick_and_loads_no_library():
    runs = [subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.split("\n")[:2] for run in runs), strict=True)
    assert min(map(float, seconds)) < 0.3
    assert set(loaded) == {""}


@pytest.mark.parametrize("name", sorted(lightning_atlas.PUBLIC))
def test_a_public_name_is_defined_in_its_part(name):
    value = getattr(lightning_atlas, name)
    assert name in dir(lightning_atlas)
    assert value.__name__ == name
    assert value.__module__.startswith(f"lightning_atlas.{lightning_atlas.PUBLIC[name]}")


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname: (node.module or "").removeprefix("lightning_atlas.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == lightning_atlas.PUBLIC


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="UNetTypo"):
        _ = lightning_atlas.UNetTypo
