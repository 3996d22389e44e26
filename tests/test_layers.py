"""Imports go one way: a room knows those before it in the list, never those after it, and no two know each other."""

import ast
import re
from pathlib import Path

import igpt_hf
from helpers.paths import ROOT


PACKAGE = Path(igpt_hf.__file__).parent
# A room may import from the rooms of earlier lines, not from its own line's other rooms.
LAYERS = (
    ("errors", "help"),
    ("model",),
    ("distributed", "plots"),
    ("data",),
    ("evaluation", "hub", "codec"),
    ("training", "app"),
    ("registration",),
    ("",),  # igpt_hf/__init__.py
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def module_name(path: Path) -> str:
    """igpt_hf/data/splits.py -> data.splits; igpt_hf/__init__.py -> ''"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(name: str, path: Path) -> set[str]:
    """The package's own modules that a module imports, also inside functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("igpt_hf.") for alias in node.names if alias.name.startswith("igpt_hf.")}
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            start = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        elif (node.module or "").partition(".")[0] == "igpt_hf":
            start = node.module.removeprefix("igpt_hf").removeprefix(".")
        else:
            continue
        for alias in node.names:
            if alias.name == "__version__":
                continue
            inner = f"{start}.{alias.name}".removeprefix(".")
            found.add(inner if inner in MODULES else start)
    return found & MODULES.keys()


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_layer():
    assert {room_of(name) for name in MODULES} == RANK.keys()


def test_no_import_goes_against_the_layers():
    against = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        for imported in imports_of(name, path)
        if room_of(name) != room_of(imported) and RANK[room_of(imported)] >= RANK[room_of(name)]
    ]
    assert not against, "\n".join(sorted(against))


def test_no_modules_import_each_other_in_a_circle():
    waiting = {name: imports_of(name, path) - {name} for name, path in MODULES.items()}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"circles among {sorted(waiting)}"


def test_what_travels_with_a_checkpoint_imports_nothing_else_of_the_package():
    outside = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        if room_of(name) == "model"
        for imported in imports_of(name, path)
        if room_of(imported) != "model"
    ]
    assert not outside, "\n".join(outside)


def test_no_test_module_imports_another():
    importing = re.compile(r"^\s*(?:from|import) (?:conftest|test_\w+|[\w.]+\.test_\w+)\b", re.MULTILINE)
    tests = ROOT / "tests"
    found = {str(path.relative_to(ROOT)): importing.findall(path.read_text("utf-8")) for path in tests.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_tests_know_where_things_are_from_one_module_alone():
    files = {path for path in (ROOT / "tests").rglob("*.py") if "__file__).parents[" in path.read_text("utf-8")}
    assert files <= {ROOT / "tests" / "helpers" / "paths.py", Path(__file__)}
