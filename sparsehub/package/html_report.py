"""A package as one self-contained page: what `inspect` shows, without a script and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sparsehub.package.card import size_text
from sparsehub.package.delta_stats import HeatMap, Histogram, percent, sizes
from sparsehub.package.describe import (
    baseline,
    commands,
    limits,
    measured_on,
    python_lines,
    training_text,
    values_text,
)
from sparsehub.package.manifest import Manifest

_STYLE = """
:root{--ink:#1d2429;--dim:#66727a;--line:#d8dfe3;--soft:#f4f7f8;--bar:#1f6f8b}
*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:32px 20px 64px;color:var(--ink);background:#fff;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}h1{font-size:26px;margin:0 0 4px}
h2{font-size:17px;margin:36px 0 10px;border-bottom:1px solid var(--line);padding-bottom:4px}
p.lead{margin:0 0 20px;color:var(--dim)}table{border-collapse:collapse;font-size:13px}th,td{padding:5px 10px;
text-align:left;vertical-align:top}th{color:var(--dim);font-weight:500}.heat th{white-space:nowrap}
.plain th:first-child{min-width:7.5em}
.scroll{overflow-x:auto}li{font-size:13px}p.note{margin:6px 0;color:var(--dim);font-size:12.5px}
table.plain td,table.plain th{border-bottom:1px solid var(--line)}td.n{text-align:right;
font-variant-numeric:tabular-nums}code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
code{overflow-wrap:anywhere}pre{background:var(--soft);border:1px solid var(--line);border-radius:6px;padding:12px;
overflow-x:auto}table.heat td{text-align:center;min-width:64px;padding:7px 6px;font-variant-numeric:tabular-nums}
figure{margin:0}figcaption{color:var(--dim);font-size:12.5px;margin-top:6px}
.bar{background:var(--bar);height:10px;border-radius:2px;min-width:1px}svg{max-width:100%;height:auto}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebee;--dim:#9aa7af;--line:#33404a;--soft:#1b242b;--bar:#5aa7bf}
body{background:#12181d}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LOW, _HIGH = (234, 243, 246), (7, 59, 80)  # of a heat map


def html_page(manifest: Manifest, map_: HeatMap, spread: Histogram) -> str:
    """The page. Whatever came from the package is escaped; nothing in it runs or loads."""
    title = escape(f"{manifest.name} {manifest.version}")
    sections = [
        _head(manifest),
        _section("Use", _use(manifest)),
        _section("How good it is", _metrics(manifest)) if manifest.metrics else "",
        _section("What changes, by layer and kind", _heat(map_)) if map_.layers else "",
        _section("Outside the layers", _outside(map_)) if map_.outside else "",
        _section("How much: the values", _values(spread, manifest)),
        _section("Size", _sizes(manifest)),
        _section("How it was made", _made(manifest)),
        _section("Limits", _limits(manifest)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}"


def _head(manifest: Manifest) -> str:
    task, delta, backbone = manifest.task, manifest.delta, manifest.backbone
    lead = (
        f"A sparse task delta: {delta.nnz:,} of {backbone.parameters:,} parameters ({delta.density:.3%}) of "
        f"{backbone.id}, chosen by {delta.method}."
    )
    rows = [
        ("kind", escape(task.kind)),
        ("fields", escape(", ".join((*task.text_fields, *task.choice_fields)))),
        *([("labels", escape(f"{len(task.labels)}: {', '.join(task.labels[:100])}"))] if task.labels else []),
        ("longest text", f"{task.max_length} tokens"),
        ("values", escape(values_text(manifest))),
        ("licence", escape(manifest.license or "none stated")),
        ("digest", f"<code>{manifest.digest}</code>"),
        (
            "backbone",
            f"{escape(backbone.id)}, {escape(backbone.architecture)} {_code(backbone.revision)}",
        ),
        ("fingerprint", f"<code>{backbone.fingerprint}</code>"),
    ]
    name = escape(f"{manifest.name} {manifest.version}")
    return f'<h1>{name}</h1>\n<p class="lead">{escape(lead)}</p>\n{_plain_table([], rows)}'


def _use(manifest: Manifest) -> str:
    shell, python = "\n".join(commands(manifest)), "\n".join(python_lines(manifest))
    return f'<pre>{escape(shell)}</pre>\n<p class="note">In Python:</p>\n<pre>{escape(python)}</pre>'


def _metrics(manifest: Manifest) -> str:
    names = list(dict.fromkeys(name for row in manifest.metrics.values() for name in row))
    rows = [
        (
            escape(split),
            escape(measured_on(manifest, split)),
            *(f"{row[name]:.4f}" if name in row else "" for name in names),
        )
        for split, row in manifest.metrics.items()
    ]
    note = escape(baseline(manifest).replace("`", ""))
    return f'{_plain_table(["split", "data", *names], rows)}\n<p class="note">{note}</p>'


def _limits(manifest: Manifest) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in limits(manifest))}</ul>"


def _heat(map_: HeatMap) -> str:
    highest = max((cell.density for cell in map_.cells.values()), default=0.0)
    head = "".join(f"<th>{escape(kind)}</th>" for kind in map_.kinds)
    lines = []
    for layer in map_.layers:
        cells = "".join(_heat_cell(map_, layer, kind, highest) for kind in map_.kinds)
        lines.append(f"<tr><th>{escape(layer)}</th>{cells}</tr>")
    note = (
        "Share of the entries that change, counted over the parameters that the task touches. Empty: it touches none."
    )
    table = f'<table class="heat"><tr><th></th>{head}</tr>{"".join(lines)}</table>'
    return f'<figure><div class="scroll">{table}</div><figcaption>{note}</figcaption></figure>'


def _heat_cell(map_: HeatMap, layer: str, kind: str, highest: float) -> str:
    cell = map_.cells.get((layer, kind))
    if cell is None:
        return "<td></td>"
    part = cell.density / highest if highest else 0.0
    red, green, blue = (round(low + (high - low) * part) for low, high in zip(_LOW, _HIGH, strict=True))
    ink = "#fff" if part > 0.5 else "#1d2429"
    title = f"{cell.nnz:,} of {cell.numel:,}"
    style = f"background:rgb({red},{green},{blue});color:{ink}"
    return f'<td style="{style}" title="{title}">{percent(cell.density)}</td>'


def _outside(map_: HeatMap) -> str:
    highest = max(cell.density for cell in map_.outside.values()) or 1.0
    rows = [
        (
            escape(name),
            f"{cell.nnz:,}",
            percent(cell.density),
            f'<div class="bar" style="width:{round(220 * cell.density / highest)}px"></div>',
        )
        for name, cell in map_.outside.items()
    ]
    return _plain_table(["parameter", "entries", "density", ""], rows)


def _values(spread: Histogram, manifest: Manifest) -> str:
    width, height, top = 640, 180, max(spread.counts)
    step = width / len(spread.counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * count / top:.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / top:.1f}" fill="var(--bar)"><title>{count:,}</title></rect>'
        for i, count in enumerate(spread.counts)
    )
    marks = ((0, spread.edges[0], "start"), (width / 2, 0.0, "middle"), (width, spread.edges[-1], "end"))
    labels = "".join(
        f'<text x="{x:.0f}" y="{height + 16}" font-size="11" fill="var(--dim)" '
        f'text-anchor="{anchor}">{value:.2g}</text>'
        for x, value, anchor in marks
    )
    svg = f'<svg viewBox="0 0 {width} {height + 22}" width="{width}" role="img">{bars}{labels}</svg>'
    what = "added to the weights" if manifest.delta.value_kind == "add" else "put in place of weights"
    beyond = f" {spread.beyond:,} values lie beyond this range." if spread.beyond else ""
    note = f"Values {what}. Mean size {spread.mean_size:.2g}, largest {spread.largest:.2g}.{beyond}"
    return f"<figure>{svg}<figcaption>{note}</figcaption></figure>"


def _sizes(manifest: Manifest) -> str:
    found = sizes(manifest)
    rows = [
        ("package, everything", size_text(found.package), f"{found.package / manifest.delta.nnz:.2f} bytes an entry"),
        ("delta", size_text(found.delta), f"{found.delta / manifest.delta.nnz:.2f} bytes an entry"),
        ("head", size_text(found.head), ""),
        (
            "the whole backbone",
            size_text(found.full),
            f"{found.full / max(found.delta + found.head, 1):.0f} times delta and head",
        ),
    ]
    if found.lora_8:
        same = f"the delta has the bytes of LoRA of rank {found.lora_rank:.1f}"
        rows.append(("LoRA, rank 8, 16 bits, on the same matrices", size_text(found.lora_8), same))
    return _plain_table([], rows)


def _made(manifest: Manifest) -> str:
    rows = [(escape(key), escape(value)) for key, value in training_text(manifest).items()]
    for parent in manifest.lineage.parents:
        merged = f"{escape(parent.name)}@{escape(parent.version)} times {parent.weight:g} <code>{parent.digest}</code>"
        rows.append(("merged from", merged))
    if manifest.lineage.checkpoint:
        lineage = manifest.lineage
        rows.append(("extracted from", f"{escape(lineage.checkpoint)} <code>{lineage.checkpoint_digest}</code>"))
    return _plain_table([], rows) if rows else "<p>The package does not say.</p>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>" if text else ""


def _plain_table(head: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of cells that are HTML already."""
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    first = "th" if not head else "td"
    body = "".join(
        f"<tr><{first}>{row[0]}</{first}>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="plain">{top}{body}</table></div>'
