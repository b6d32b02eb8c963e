"""What holds for the code as a whole, read from its syntax: names, sizes, imports, callbacks."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 300, 60
CALLABLES = 15  # parameters and fields of the engine and of the service: what is wired is an object with a name
# By module and qualified name, why a function is longer.
LONG_FUNCTIONS = {
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
    assert long == LONG_FUNCTIONS.keys()


def test_no_modules_import_each_other() -> None:
    """Under TYPE_CHECKING neither. An import inside a function does not count: it runs when both modules are there."""
    modules = {module_name(path): tree for path, tree in sources().items()}
    imports = {name: set(imported(tree, modules)) - {name} for name, tree in modules.items()}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' <- '.join(error.args[1])}")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(node: ast.AST, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    """The modules of ours that are imported outside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.ImportFrom) and child.module:
            for name in (f"{child.module}.{alias.name}" for alias in child.names):
                yield name if name in modules else child.module
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        yield from imported(child, modules)


def test_few_callables_are_handed_about() -> None:
    """A sort key or a kernel is one; what another object does is that object."""
    wired = {path: tree for path, tree in sources().items() if path.is_relative_to(ROOT / "sparsehub" / "engine")}
    wired |= {path: tree for path, tree in sources().items() if path.is_relative_to(ROOT / "serving")}
    aliases = {name for tree in wired.values() for name in callable_aliases(tree)}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path, tree in wired.items()
        for node in ast.walk(tree)
        for name, annotation in annotated(node)
        if "Callable" in annotation or aliases & set(re.findall(r"\w+", annotation))
    ]
    assert len(found) <= CALLABLES, found


def callable_aliases(tree: ast.Module) -> Iterator[str]:
    """Names such as `Report = Callable[[str], None]`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "Callable[" in ast.unparse(node.value):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def annotated(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The parameters of a function and the fields of a class, each with its annotation."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        given = node.args
        for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
            if argument.annotation is not None:
                yield argument.arg, ast.unparse(argument.annotation)
    if isinstance(node, ast.ClassDef):
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                yield field.target.id, ast.unparse(field.annotation)
