"""The card: what a package is and how to use it, written from the manifest alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection

from sparsehub.package.anatomy import heat_map, percent, sizes
from sparsehub.package.manifest import MULTIPLE_CHOICE, REGRESSION, TEXT_GENERATION, TOKEN_CLASSIFICATION, Manifest
from sparsehub.package.metadata import BASELINES, dataset_of, front_matter

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
    if isinstance(value, dict):
        return "; ".join(f"{plain(name)} {plain(item)}" for name, item in value.items())
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
        f"and brings {'no head: the backbone has it' if _generates(manifest) else 'its own head'}. "
        f"Kind: {manifest.task.kind}."
    )


def _use(manifest: Manifest) -> str:
    name, version, backbone = manifest.name, manifest.version, shlex.quote(_code(manifest.backbone.id))
    route, body = request(manifest)
    return (
        "## Use\n\n```sh\n"
        f"sparsehub serve --backbone {backbone} --hub HUB --task {name}@{version}\n"
        f"curl localhost:3000/v1/{route} -H 'content-type: application/json' -d {shlex.quote(body)}\n"
        f"sparsehub materialize {name}@{version} --hub HUB --backbone {backbone} --out full/{name}\n```\n\n"
        "```python\n"
        "from sparsehub.backbone import load_backbone\n"
        "from sparsehub.engine import Engine\n"
        "from sparsehub.hub import open_hub\n"
        "from sparsehub.hub.loading import load_package\n\n"
        f"engine = Engine(load_backbone({json.dumps(manifest.backbone.id)}))\n"
        f'engine.add(load_package("{name}@{version}", open_hub("HUB")))\n'
        "engine.start()\n"
        f"{_call(manifest)}\n```"
    )


def _generates(manifest: Manifest) -> bool:
    return manifest.task.kind == TEXT_GENERATION


def _call(manifest: Manifest) -> str:
    if _generates(manifest):
        return f'answer = engine.generate("{manifest.name}", "...").result()'
    return f'answer = engine.classify("{manifest.name}", {_item(manifest)}).futures[0].result()'


def request(manifest: Manifest) -> tuple[str, str]:
    """The route that answers the task's rows, and the JSON body that asks it."""
    if _generates(manifest):
        return "completions", json.dumps({"model": manifest.name, "prompt": "...", "max_tokens": 64})
    route = "score" if manifest.task.kind == REGRESSION else "classify"
    return route, f'{{"model": "{manifest.name}", "input": {_item(manifest)}}}'


def _item(manifest: Manifest) -> str:
    task = manifest.task
    fields = (*task.text_fields, *task.choice_fields)
    one = len(fields) == 1 or task.kind == TOKEN_CLASSIFICATION
    return json.dumps(["..." if one else dict.fromkeys(fields, "...")], ensure_ascii=False)


def _metrics(manifest: Manifest) -> str:
    if not manifest.metrics:
        return ""
    names = [name for name in manifest.task.metrics if any(name in row for row in manifest.metrics.values())]
    lines = ["| split | data | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for split, row in manifest.metrics.items():
        cells = [f"{row[name]:.4f}" if name in row else "" for name in names]
        lines.append(f"| {plain(split)} | {_data(manifest, split)} | " + " | ".join(cells) + " |")
    baseline = "`majority` answers the commonest training label (or the mean)."
    if _generates(manifest):
        baseline = "`backbone` is the backbone without it. An exact match is a whole completion, token for token."
    note = f"Of the package as written, rounding included. {baseline}"
    return "## Metrics\n\n" + note + "\n\n" + "\n".join(lines)


def _data(manifest: Manifest, split: str) -> str:
    """The data set of a split and its rows, as far as they are known."""
    if split.endswith(BASELINES):
        return ""
    data = manifest.training.get("data")
    record = data.get(split) if isinstance(data, dict) else None
    rows = record.get("rows") if isinstance(record, dict) else None
    source = plain(dataset_of(manifest, split).source)
    return f"{source}, {rows:,} rows" if source and isinstance(rows, int) else source


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
        f"{delta.nnz:,} entries in {len(delta.parameters)} parameters, stored as `{delta.value_dtype}`, kind "
        f"`{delta.value_kind}`; {percent(total / delta.nnz)} of them in the {len(shown.layers)} layers."
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
    lines = [f"- {plain(name)}: {plain(value)}" for name, value in manifest.training_told.items() if name != "seconds"]
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
    task = manifest.task
    lines = [
        "- It fits the backbone of this fingerprint and no other, not even a fine-tuned copy of it.",
        f"- It was trained on texts of at most {task.max_length} tokens; longer ones it has not seen."
        if _generates(manifest)
        else f"- Text beyond {task.max_length} tokens is refused, or cut where the caller says so.",
    ]
    if task.labels and task.kind != MULTIPLE_CHOICE:
        lines.append("- It knows these labels only: text that fits none of them gets one of them all the same.")
    splits = [split for split in manifest.metrics if not split.endswith(BASELINES)]
    measured = f"was measured on {', '.join(map(plain, splits))} alone" if splits else "was not measured"
    lines.append(f"- It {measured}; on other data it may do worse.")
    return "## Limits\n\n" + "\n".join(lines)


def _licence(manifest: Manifest) -> str:
    none = "None is stated: ask whoever published it. The backbone has a licence of its own."
    stated = f"{plain(manifest.license)}. The backbone has a licence of its own."
    return "## Licence\n\n" + (stated if manifest.license else none)


def _code(text: str) -> str:
    """Text for a code span."""
    return _CONTROL.sub(" ", text).replace("`", "'")
