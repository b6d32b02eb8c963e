"""A package on a terminal: its summary as tables, its charts in characters. For `sparsehub show` and `inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sparsehub.cli.heat_map_names import heat_map_names
from sparsehub.cli.output import console, show_fields, show_table
from sparsehub.package.card import shown_scores
from sparsehub.package.describe import head_text, quantised_text, thresholds_text
from sparsehub.package.units import size_text

if TYPE_CHECKING:
    from sparsehub.package.delta_stats import HeatMap, Histogram
    from sparsehub.package.manifest import Lineage
    from sparsehub.package.summary import ChangesSummary, PackageSummary

_SHADES = ("#eaf3f6", "#c3dfe8", "#93c6d6", "#5aa7bf", "#2c86a3", "#12607d", "#073b50")
_BLOCKS = " ▁▂▃▄▅▆▇█"
_BARS = 6  # lines of a histogram
SHOWN_LABELS = 12


def show_package(package: PackageSummary, **more: object) -> None:
    """What a package is, where it came from and how large it is. more: further lines of this block, by name."""
    task, changes, backbone = package.task, package.changes, package.backbone
    labels = f"{len(task.labels)}: {', '.join(task.labels[:SHOWN_LABELS])}"
    total = package.sizes.package
    fields: dict[str, object] = {
        "digest": package.digest,
        **more,
        "kind": task.kind,
        "fields": ", ".join((*task.text_fields, *task.choice_fields)),
        **({"labels": labels + (" ..." if len(task.labels) > SHOWN_LABELS else "")} if task.labels else {}),
        **({"thresholds": thresholds_text(task, SHOWN_LABELS)} if task.thresholds else {}),
        "backbone": f"{backbone.id} ({backbone.architecture}, {backbone.parameters:,} parameters)",
        "fingerprint": backbone.fingerprint,
        "head": head_text(task),
        "changes": _changes(changes),
        "values": changes.values,
        **({"depth": changes.depth} if changes.depth else {}),
        "size": size_text(total)
        + (f" ({total / changes.nnz:.2f} bytes an entry, head and card included)" if changes.nnz else ""),
        "beside": _beside(package),
        "files": ", ".join(f"{name} {size_text(bytes_)}" for name, bytes_ in package.files.items()),
        "licence": package.license or "none stated",
        **_lineage(package.lineage),
    }
    show_fields(f"{package.name}@{package.version}", {key: _visible(value) for key, value in fields.items()})


def show_metrics(package: PackageSummary) -> None:
    """The scores of every split, one line each, with its data and rows; nothing where none were measured."""
    metrics = package.metrics
    rows = [
        [_visible(split.split), _visible(split.data), *(_number(split.scores.get(name)) for name in metrics.measured)]
        for split in metrics.splits
    ]
    if rows:
        columns = ["split", "data", *map(_visible, metrics.measured)]
        show_table(columns, rows, "\nhow good it is", drop=("data", *columns[:2:-1]))
        console.print(f"[dim]{metrics.note.replace('`', '')}[/]", highlight=False)


def show_quantised(package: PackageSummary) -> None:
    """The scores on quantised weights beside those on the weights as stored; nothing where none were measured."""
    for kind, its in package.quantised.items():
        lines = {"as stored": its.exact, _visible(kind): its.metrics}
        rows = [[name, *(_number(scores.get(metric)) for metric in its.metrics)] for name, scores in lines.items()]
        title = f"\non {_visible(kind)} weights: {its.rows:,} rows of {escape(_visible(its.source))}"
        show_table(["weights", *map(_visible, its.metrics)], rows, title)
        if text := quantised_text(its):
            console.print(f"[dim]{escape(_visible(text))}[/]", highlight=False)


def show_scores(package: PackageSummary) -> None:
    """Precision, recall and F1 of every label, or of the worst of many; nothing where the package does not say."""
    rows = [
        [_visible(its.label), f"{its.precision:.3f}", f"{its.recall:.3f}", f"{its.f1:.3f}", its.support]
        for its in shown_scores(package.results)
    ]
    if rows and package.results is not None:
        few = f", the {len(rows)} with the lowest F1" if len(rows) < len(package.results.labels) else ""
        title = f"\nlabel by label: {_visible(package.results.split)}{few}"
        show_table(["label", "precision", "recall", "F1", "rows"], rows, title)


def show_training(package: PackageSummary) -> None:
    """How the package was made, by setting; nothing where the manifest does not say."""
    fields = {_visible(key): _visible(value) for key, value in package.training.items()}
    if fields:
        console.print()
        show_fields("how it was made", fields)


def show_heat_map(found: HeatMap) -> None:
    """The densities by layer and kind of parameter, in shades, then those of parameters in no layer."""
    from sparsehub.package.units import percent

    highest = max((cell.density for cell in found.cells.values()), default=0.0)
    names = heat_map_names(found, console.width)
    title = "\nwhat changes, by layer and kind (share of the entries of touched parameters)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    for lines in names.kinds.values():
        table.add_column("\n".join(escape(_visible(line)) for line in lines), justify="center", no_wrap=True)
    for layer in found.layers:
        cells = [found.cells.get((layer, kind)) for kind in names.kinds]
        shown = [Text("") if cell is None else shaded(percent(cell.density), cell.density, highest) for cell in cells]
        table.add_row(escape(_visible(names.layers[layer])), *shown)
    if found.layers:
        console.print(table)
    if gone := [_visible(kind) for kind in found.kinds if kind not in names.kinds]:
        console.print(f"[dim]no room for: {escape(', '.join(gone))}[/]", highlight=False)
    if found.outside:
        rows = [[_visible(name), cell.nnz, percent(cell.density)] for name, cell in found.outside.items()]
        console.print()
        show_table(["outside the layers", "entries", "density"], rows)


def show_histogram(found: Histogram) -> None:
    """The histogram of the values, as a few lines of block characters."""
    highest = max(found.counts)
    lines = ["\n[bold]how much: the values[/]"]
    for line in range(_BARS, 0, -1):
        heights = (count / highest * _BARS - (line - 1) for count in found.counts)
        lines.append("  " + "".join(_BLOCKS[round(8 * min(1.0, max(0.0, height)))] * 2 for height in heights))
    width = 2 * len(found.counts)
    left, right = f"{found.edges[0]:.2g}", f"{found.edges[-1]:.2g}"
    lines.append("  " + left + "0".center(width - len(left) - len(right)) + right)
    beyond = f", {found.beyond:,} beyond this range" if found.beyond else ""
    lines.append(f"  mean size {found.mean_size:.2g}, largest {found.largest:.2g}{beyond}")
    console.print("\n".join(lines), highlight=False)


def shaded(text: str, value: float, highest: float) -> Text:
    """A cell of a heat map, with `text` on the shade of `value`; `highest` has the darkest one."""
    step = round((len(_SHADES) - 1) * value / highest) if highest else 0
    colour = "white" if step > len(_SHADES) // 2 else "black"
    return Text(f" {text:>5} ", style=f"{colour} on {_SHADES[step]}")


def _changes(changes: ChangesSummary) -> str:
    if not changes.nnz:
        return "nothing in the backbone"
    return f"{changes.nnz:,} entries ({changes.density:.3%}), chosen by {changes.method}"


def _lineage(lineage: Lineage) -> dict[str, str]:
    found = {}
    for number, parent in enumerate(lineage.parents):
        label = "merged from" if not number else " " * number  # one line each: names of fields differ
        found[label] = f"{parent.name}@{parent.version} times {parent.weight:g}, {parent.digest}"
    if lineage.checkpoint:
        found["extracted from"] = f"{lineage.checkpoint}, {lineage.checkpoint_digest}"
    return found


def _beside(package: PackageSummary) -> str:
    found = package.sizes
    lora = f"; LoRA r=8 {size_text(found.lora_8)}, as large at rank {found.lora_rank:.1f}" if found.lora_8 else ""
    return f"the backbone {size_text(found.full)}, {found.full_ratio:.0f} times delta and head{lora}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _visible(value: Any) -> str:
    """A package's text without control characters, which could move the cursor or colour the screen."""
    return "".join(character if character.isprintable() else "�" for character in str(value))
