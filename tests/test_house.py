"""What holds for the code as a whole, read from its syntax: names, sizes."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 300, 60
# By module and qualified name, why a function is longer.
LONG_FUNCTIONS = {
    "extract.extract": "typer reads a verb's flags from its signature",
    "serve.serve": "typer reads a verb's flags from its signature",
    "train.train": "typer reads a verb's flags from its signature",
    "metrics.Metrics.__init__": "one metric after the other, each with its name and its help",
}


@cache
def sources() -> dict[Path, ast.Module]:
    """The syntax tree of every module of ours."""
    paths = sorted(path for package in ("sparsehub", "serving") for path in (ROOT / package).rglob("*.py"))
    assert len(paths) > 200
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function under a node, with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}.{node.name}" if named else prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(list)
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    found = [(name, node) for path, tree in sources().items() for name, node in functions(tree, path.stem)]
    long = {name for name, node in found if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES}
    assert long - LONG_FUNCTIONS.keys() == set()
