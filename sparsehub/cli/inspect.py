"""sparsehub inspect: what a package is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehub.cli.output import show_fields, show_json, show_table, size


def inspect(
    package: Annotated[Path, typer.Argument(help="A package folder.")],
    parameters: Annotated[bool, typer.Option("--parameters", help="List every changed parameter.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show what a package is, what it changes and how good it is. Its bytes are proved first."""
    from sparsehub.package import read_package

    manifest = read_package(package).manifest
    total = len(manifest.to_bytes()) + sum(record.size for record in manifest.files.values())
    if as_json:
        show_json({"digest": manifest.digest, "bytes": total, "manifest": dataclasses.asdict(manifest)})
        return
    task, delta, backbone = manifest.task, manifest.delta, manifest.backbone
    show_fields(
        f"{manifest.name}@{manifest.version}",
        {
            "digest": manifest.digest,
            "kind": task.kind,
            "fields": ", ".join((*task.text_fields, *task.choice_fields)),
            "labels": f"{len(task.labels)}: {', '.join(task.labels[:12])}{' ...' if len(task.labels) > 12 else ''}",
            "backbone": f"{backbone.id} ({backbone.architecture}, {backbone.parameters:,} parameters)",
            "fingerprint": backbone.fingerprint,
            "changes": f"{delta.nnz:,} entries ({delta.density:.3%}), chosen by {delta.method}",
            "values": f"{delta.value_dtype}, {delta.value_kind}",
            "size": f"{size(total)} ({total / delta.nnz:.2f} bytes an entry, head and card included)",
            "files": ", ".join(f"{name} {size(record.size)}" for name, record in sorted(manifest.files.items())),
            **{split: "  ".join(f"{k} {v:.4f}" for k, v in row.items()) for split, row in manifest.metrics.items()},
        },
    )
    show_table(*(_by_parameter if parameters else _by_group)(delta.parameters))


def _by_parameter(parameters: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    rows = [[name, touched.nnz, _share(touched.nnz, touched.shape)] for name, touched in parameters.items()]
    return ["parameter", "entries", "density"], rows, "\nwhat changes, by parameter"


def _by_group(parameters: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    """Layers of a stack are one line each; everything else is under its first name."""
    groups: dict[str, list[Any]] = {}
    for name, touched in parameters.items():
        groups.setdefault(_group(name), []).append(touched)
    rows = [
        [group, sum(t.nnz for t in touched), _share(sum(t.nnz for t in touched), *(t.shape for t in touched))]
        for group, touched in groups.items()
    ]
    return ["part", "entries", "density"], rows, "\nwhat changes, by layer (of the touched parameters)"


def _group(name: str) -> str:
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: place + 1])


def _share(nnz: int, *shapes: tuple[int, ...]) -> str:
    import math

    return f"{nnz / sum(math.prod(shape) for shape in shapes):.3%}"
