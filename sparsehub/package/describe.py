"""What a manifest says, in words: the same ones on the card, on the page and in the terminal.

Text is as it stands in the manifest, which anybody may have written: whoever shows it makes it harmless for his place.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from sparsehub.package.manifest import MULTIPLE_CHOICE, REGRESSION, TEXT_GENERATION, TOKEN_CLASSIFICATION, Manifest
from sparsehub.package.metadata import BASELINES, dataset_of

_NAMES = {"trained": "entries trained", "selection": "entries chosen in"}


def commands(manifest: Manifest) -> list[str]:
    """Shell lines: serve the task, ask it, and turn it into a whole checkpoint. They are quoted: people paste them."""
    reference, backbone = f"{manifest.name}@{manifest.version}", shlex.quote(_one_line(manifest.backbone.id))
    route, body = request(manifest)
    return [
        f"sparsehub serve --backbone {backbone} --hub HUB --task {reference}",
        f"curl localhost:3000/v1/{route} -H 'content-type: application/json' -d {shlex.quote(body)}",
        f"sparsehub materialize {reference} --hub HUB --backbone {backbone} --out full/{manifest.name}",
    ]


def python_lines(manifest: Manifest) -> list[str]:
    """The same in Python."""
    return [
        "from sparsehub.backbone import load_backbone",
        "from sparsehub.engine import Engine",
        "from sparsehub.hub import open_hub",
        "from sparsehub.hub.package_loader import load_package",
        "",
        f"engine = Engine(load_backbone({json.dumps(manifest.backbone.id)}))",
        f'engine.add(load_package("{manifest.name}@{manifest.version}", open_hub("HUB")))',
        "engine.start()",
        _call(manifest),
    ]


def request(manifest: Manifest) -> tuple[str, str]:
    """The route that answers the task's rows, and the JSON body that asks it."""
    if generates(manifest):
        return "completions", json.dumps({"model": manifest.name, "prompt": "...", "max_tokens": 64})
    route = "score" if manifest.task.kind == REGRESSION else "classify"
    return route, f'{{"model": "{manifest.name}", "input": {_item(manifest)}}}'


def generates(manifest: Manifest) -> bool:
    """Whether the task writes text."""
    return manifest.task.kind == TEXT_GENERATION


def baseline(manifest: Manifest) -> str:
    """What the metrics are of, and what stands beside them."""
    if generates(manifest):
        beside = "`backbone` is the backbone without it. An exact match is a whole completion, token for token."
    else:
        beside = "`majority` answers the commonest training label (or the mean)."
    return f"Of the package as written, rounding included. {beside}"


def measured_on(manifest: Manifest, split: str) -> str:
    """The data set of a split and its rows, as far as they are known; nothing for a baseline."""
    if split.endswith(BASELINES):
        return ""
    data = manifest.training.get("data")
    record = data.get(split) if isinstance(data, dict) else None
    rows = record.get("rows") if isinstance(record, dict) else None
    source = dataset_of(manifest, split).source
    return f"{source}, {rows:,} rows" if source and isinstance(rows, int) else source


def values_text(manifest: Manifest) -> str:
    """How the values are stored, and what they mean."""
    meaning = "added to the weights" if manifest.delta.value_kind == "add" else "put in place of weights"
    return f"{manifest.delta.value_dtype}, {meaning}"


def training_text(manifest: Manifest) -> dict[str, str]:
    """How the package was made, by the names of the settings."""
    told = {_NAMES.get(name, name): _flat(value, name) for name, value in manifest.training_told.items()}
    if isinstance(data := manifest.training.get("data"), dict) and data:
        told["data"] = "; ".join(f"{split}: {_rows(record)}" for split, record in data.items())
    return told


def limits(manifest: Manifest) -> list[str]:
    """What the task cannot do, in sentences."""
    task = manifest.task
    lines = [
        "It fits the backbone of this fingerprint and no other, not even a fine-tuned copy of it.",
        f"It was trained on texts of at most {task.max_length} tokens; longer ones it has not seen."
        if generates(manifest)
        else f"Text beyond {task.max_length} tokens is refused, or cut where the caller says so.",
    ]
    if task.labels and task.kind != MULTIPLE_CHOICE:
        lines.append("It knows these labels only: text that fits none of them gets one of them all the same.")
    splits = [split for split in manifest.metrics if not split.endswith(BASELINES)]
    measured = f"was measured on {', '.join(splits)} alone" if splits else "was not measured"
    return [*lines, f"It {measured}; on other data it may do worse."]


def _call(manifest: Manifest) -> str:
    if generates(manifest):
        return f'answer = engine.generate("{manifest.name}", "...").result()'
    return f'answer = engine.classify("{manifest.name}", {_item(manifest)}).futures[0].result()'


def _item(manifest: Manifest) -> str:
    task = manifest.task
    fields = (*task.text_fields, *task.choice_fields)
    one = len(fields) == 1 or task.kind == TOKEN_CLASSIFICATION
    return json.dumps(["..." if one else dict.fromkeys(fields, "...")], ensure_ascii=False)


def _rows(record: Any) -> str:
    if isinstance(record, dict) and isinstance(record.get("rows"), int) and set(record) <= {"rows", "source"}:
        return f"{record['rows']:,} rows" + (f" of {record['source']}" if record.get("source") else "")
    return _flat(record, "")


def _flat(value: Any, setting: str) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_flat(item, setting)}" for name, item in value.items())
    return f"{value:,}" if type(value) is int and setting != "seed" else str(value)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).replace("`", "'")
