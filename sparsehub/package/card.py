"""The card: what a package is and how to use it, written from the manifest alone."""

from __future__ import annotations

import re
from collections.abc import Collection

from sparsehub.package.delta_stats import heat_map, percent, sizes
from sparsehub.package.describe import (
    baseline,
    commands,
    generates,
    limits,
    measured_on,
    python_lines,
    training_text,
    values_text,
)
from sparsehub.package.manifest import MULTIPLE_CHOICE, Manifest
from sparsehub.package.metadata import front_matter

SHOWN_LABELS = 100
DENSITY_PICTURE, VALUES_PICTURE = "density.png", "values.png"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def write_card(manifest: Manifest, pictures: Collection[str] = ()) -> str:
    """README.md of a package: metadata as the Hugging Face Hub expects it, then text for people.

    pictures: names of the pictures that lie beside the card. The sizes are told where the manifest has its files.
    """
    sections = [
        front_matter(manifest),
        _title(manifest),
        _use(manifest),
        _metrics(manifest),
        _task(manifest),
        _changes(manifest, pictures),
        _sizes(manifest),
        _made(manifest),
        _limits(manifest),
        _licence(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def plain(value: object) -> str:
    """Text from elsewhere on one line: without control characters, tags or table borders."""
    text = _CONTROL.sub(" ", str(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def size_text(count: float) -> str:
    """A number of bytes for people: 508180 -> 496.3 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _title(manifest: Manifest) -> str:
    delta = manifest.delta
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        f"A sparse task delta for `{_code(manifest.backbone.id)}`: it changes {delta.nnz:,} of the backbone's "
        f"{manifest.backbone.parameters:,} parameters ({delta.density:.3%}), chosen by `{_code(delta.method)}`, "
        f"and brings {'no head: the backbone has it' if generates(manifest) else 'its own head'}. "
        f"Kind: {manifest.task.kind}."
    )


def _use(manifest: Manifest) -> str:
    shell, python = "\n".join(commands(manifest)), "\n".join(python_lines(manifest))
    return f"## Use\n\n```sh\n{shell}\n```\n\n```python\n{python}\n```"


def _metrics(manifest: Manifest) -> str:
    if not manifest.metrics:
        return ""
    names = [name for name in manifest.task.metrics if any(name in row for row in manifest.metrics.values())]
    lines = ["| split | data | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for split, row in manifest.metrics.items():
        cells = [f"{row[name]:.4f}" if name in row else "" for name in names]
        lines.append(f"| {plain(split)} | {plain(measured_on(manifest, split))} | " + " | ".join(cells) + " |")
    return "## Metrics\n\n" + baseline(manifest) + "\n\n" + "\n".join(lines)


def _task(manifest: Manifest) -> str:
    task = manifest.task
    lines = [
        f"- text fields: {', '.join(map(plain, task.text_fields))}",
        f"- at most {task.max_length} tokens a sequence",
    ]
    if task.labels:
        kind = "choices" if task.kind == MULTIPLE_CHOICE else "labels"
        more = f" and {len(task.labels) - SHOWN_LABELS} more" if len(task.labels) > SHOWN_LABELS else ""
        lines.append(f"- {len(task.labels)} {kind}: {', '.join(map(plain, task.labels[:SHOWN_LABELS]))}{more}")
    return "## Inputs and outputs\n\n" + "\n".join(lines)


def _changes(manifest: Manifest, pictures: Collection[str]) -> str:
    delta, shown = manifest.delta, heat_map(manifest)
    total = sum(cell.nnz for cell in shown.cells.values())
    lines = [
        f"{delta.nnz:,} entries in {len(delta.parameters)} parameters, stored as {values_text(manifest)}; "
        f"{percent(total / delta.nnz)} of them in the {len(shown.layers)} layers."
    ]
    if DENSITY_PICTURE in pictures:
        lines.append(f"![Share of entries changed, by layer and kind of matrix]({DENSITY_PICTURE})")
    if VALUES_PICTURE in pictures:
        lines.append(f"![Histogram of the values]({VALUES_PICTURE})")
    return "## What changes\n\n" + "\n\n".join(lines)


def _sizes(manifest: Manifest) -> str:
    if not manifest.files:
        return ""
    found = sizes(manifest)
    rows = [
        ("delta", found.delta, f"{found.delta / manifest.delta.nnz:.2f} bytes an entry"),
        ("head", found.head, ""),
        ("the whole backbone", found.full, f"{found.full / max(found.delta + found.head, 1):.0f} times delta and head"),
    ]
    if found.lora_8:
        same = f"the delta has the bytes of LoRA of rank {found.lora_rank:.1f}"
        rows.append(("LoRA, rank 8, 16 bits, same matrices", found.lora_8, same))
    lines = [f"| {what} | {size_text(count)} | {note} |" for what, count, note in rows]
    return "## Size\n\n" + "\n".join(["| | | |", "|---|---:|---|", *lines])


def _made(manifest: Manifest) -> str:
    lines = [f"- {plain(name)}: {plain(value)}" for name, value in training_text(manifest).items() if name != "seconds"]
    lineage = manifest.lineage
    lines += [
        f"- merged from: `{parent.name}@{parent.version}` times {parent.weight:g} (`{parent.digest}`)"
        for parent in lineage.parents
    ]
    if lineage.checkpoint:
        lines.append(f"- extracted from: `{_code(lineage.checkpoint)}` (`{lineage.checkpoint_digest}`)")
    revision = f" at `{_code(manifest.backbone.revision)}`" if manifest.backbone.revision else ""
    lines.append(f"- backbone: `{_code(manifest.backbone.id)}`{revision}, {plain(manifest.backbone.architecture)}")
    lines.append(f"- backbone fingerprint: `{manifest.backbone.fingerprint}`")
    return "## How it was made\n\n" + "\n".join(lines)


def _limits(manifest: Manifest) -> str:
    return "## Limits\n\n" + "\n".join(f"- {plain(line)}" for line in limits(manifest))


def _licence(manifest: Manifest) -> str:
    none = "None is stated: ask whoever published it. The backbone has a licence of its own."
    stated = f"{plain(manifest.license)}. The backbone has a licence of its own."
    return "## Licence\n\n" + (stated if manifest.license else none)


def _code(text: str) -> str:
    """Text for a code span."""
    return _CONTROL.sub(" ", text).replace("`", "'")
