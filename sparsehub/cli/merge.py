"""sparsehub merge, diff: merge packages into one, and compare two."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.extract import split_list
from sparsehub.cli.output import console, show_fields, show_json, show_table
from sparsehub.cli.packages import HUB, load_reference
from sparsehub.delta_format import STORED_DTYPES
from sparsehub.errors import UsageError

if TYPE_CHECKING:
    from sparsehub.backbone import Checkpoint
    from sparsehub.convert.merge import LayerComparison
    from sparsehub.package import Manifest, Package

METHODS = ("task-arithmetic", "ties", "dare", "dare-ties")
_BACKBONE = typer.Option(help="The backbone, which packages with `set` values need.")


def merge(
    packages: Annotated[list[str], typer.Argument(help="Package folders, or task references in --hub.")],
    out: Annotated[Path, typer.Option(help="The package folder to write.")],
    name: Annotated[str, typer.Option(help="The new task's name: a-z 0-9 . _ -")],
    version: Annotated[str, typer.Option(help="The package's version.")] = "0.1.0",
    method: Annotated[str, one_of(METHODS, "How; task-arithmetic is the weighted sum.")] = "task-arithmetic",
    weights: Annotated[str, typer.Option(help="One number a package: 1,0.5 (default: all 1).")] = "",
    density: Annotated[float, typer.Option(help="Share of its entries that ties and dare keep of each package.")] = 1.0,
    nnz: Annotated[int, typer.Option(help="Keep only this many of the result's largest entries.")] = 0,
    value_dtype: Annotated[
        str | None, one_of(tuple(STORED_DTYPES), "How values are stored (default: as in the packages).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of dare.")] = 42,
    hub: Annotated[str | None, HUB] = None,
    backbone: Annotated[str | None, _BACKBONE] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Merge packages of one backbone into a new one, with task and head of the first.

    Nothing is trained or measured: evaluate the result before you use it.
    """
    from sparsehub.convert.merge import MergeRecipe, PackageLabel, merge_packages

    read = _load(packages, hub)
    recipe = MergeRecipe(method, _numbers(weights), density, seed, nnz, value_dtype)
    _show_written(out, merge_packages(read, recipe, PackageLabel(out, name, version), _checkpoint(backbone)), as_json)


def diff(
    first: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    second: Annotated[str, typer.Argument(help="Another package on the same backbone.")],
    out: Annotated[Path | None, typer.Option(help="Also write the change from first to second as a package.")] = None,
    name: Annotated[str | None, typer.Option(help="The name of that package.")] = None,
    version: Annotated[str, typer.Option(help="Its version.")] = "0.1.0",
    value_dtype: Annotated[str, one_of(tuple(STORED_DTYPES), "How its values are stored.")] = "float32",
    hub: Annotated[str | None, HUB] = None,
    backbone: Annotated[str | None, _BACKBONE] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Compare what two packages change. With --out, also write the change from the first to the second.

    That package holds the second's head. On the backbone alone it is no task: merged with the first it gives the second
    (`sparsehub merge OUT FIRST`).
    """
    from sparsehub.convert.merge import PackageLabel, compare, difference_package

    if (out is None) != (name is None):
        raise UsageError("a difference that is written needs a folder and a name", fix="give --out and --name")
    one, two = _load([first, second], hub)
    checkpoint = _checkpoint(backbone)
    found = compare(one, two, checkpoint)
    written = None
    if out is not None and name is not None:
        written = difference_package(one, two, PackageLabel(out, name, version), checkpoint, value_dtype)
    if as_json:
        overlap = {"jaccard": found.overlap.jaccard, "sign_agreement": found.overlap.sign_agreement}
        show_json({**overlap, **dataclasses.asdict(found), "package": str(out) if written else None})
        return
    _show_comparison(one, two, found)
    if written is not None and out is not None:
        _show_written(out, written, as_json)
        console.print(f"[dim]{written.training['meaning']}[/]", highlight=False)


def _load(references: list[str], hub: str | None) -> list[Package]:

    return [load_reference(reference, hub) for reference in references]


def _checkpoint(backbone: str | None) -> Checkpoint | None:
    from sparsehub.backbone import open_checkpoint

    return None if backbone is None else open_checkpoint(backbone)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in split_list(text))
    except ValueError:
        raise UsageError("weights are numbers between commas", found=text, expected="for example 1,0.5") from None


def _show_written(out: Path, manifest: Manifest, as_json: bool) -> None:
    fields = {"package": str(out), "digest": manifest.digest, "nnz": manifest.nnz}
    if as_json:
        show_json({**fields, "density": manifest.density, "parents": [p.name for p in manifest.lineage.parents]})
        return
    parents = ", ".join(f"{p.weight:+g} {p.name}@{p.version}" for p in manifest.lineage.parents)
    changes = f"{manifest.nnz:,} entries ({manifest.density:.3%}), {manifest.value_dtype}"
    show_fields(
        f"{manifest.name}@{manifest.version}",
        {"package": out, "digest": manifest.digest, "made of": parents, "changes": changes},
    )


def _show_comparison(one: Package, two: Package, found: Any) -> None:
    names = [f"{p.manifest.name}@{p.manifest.version}" for p in (one, two)]
    show_fields(
        f"{names[0]} and {names[1]}",
        {
            "entries": f"{one.delta.nnz:,} and {two.delta.nnz:,}, {found.overlap.shared:,} in common",
            "overlap": f"Jaccard {found.overlap.jaccard:.4f}",
            "signs": f"{found.overlap.sign_agreement:.1%} of the common entries agree",
            "cosine": f"{found.cosine:+.4f}",
            "norms": f"{found.norms[0]:.4g} and {found.norms[1]:.4g}",
            "heads": "the same" if found.same_head else "different",
        },
    )
    show_parts(found.parts)


def show_parts(parts: Sequence[LayerComparison]) -> None:
    """What two packages change, a line for each layer."""
    rows = [[p.part, p.first, p.second, p.shared, f"{p.cosine:+.3f}"] for p in parts]
    show_table(["part", "first", "second", "in common", "cosine"], rows, "\nby layer")
