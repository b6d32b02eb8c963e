"""sparsehub show: shows a version of a hub without downloading its weights."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sparsehub.cli.output import console, show_json
from sparsehub.cli.packages import HUB


def show(
    reference: Annotated[str, typer.Argument(help="name, name@version, name@channel or name@sha256:...")],
    hub: Annotated[str, HUB],
    card: Annotated[bool, typer.Option("--card", help="Show the card, as its publisher wrote it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show a version's metrics, size, lineage, channels and card. Weights are not downloaded."""
    from sparsehub.cli import present
    from sparsehub.cli.packages import open_location
    from sparsehub.package.summary import summarize

    home = open_location(hub)
    resolved = home.resolve(reference)
    peek, channels = home.peek(resolved), home.channels(resolved.name)
    pointing = sorted(name for name, found in channels.items() if found.target.digest == resolved.digest)
    if as_json:
        shown = {"digest": resolved.digest, "channels": pointing, "signed": peek.signature is not None}
        show_json({**shown, "manifest": json.loads(peek.manifest.to_bytes()), "card": peek.card})
        return
    if card:
        _show_card(peek.card)
        return
    package = summarize(peek.manifest)
    signature = "signed" if peek.signature else "none"
    present.show_package(package, channels=", ".join(pointing) or "none", signature=signature)
    present.show_metrics(package)
    present.show_quantised(package)
    present.show_scores(package)
    present.show_training(package)
    present.show_heat_map(package.changes.heat_map)
    console.print(f"\n[dim]the card: sparsehub show {reference} --hub {hub} --card[/]", highlight=False)


def _show_card(card: str | None) -> None:
    from rich.markdown import Markdown

    from sparsehub.errors import NotFoundError

    if card is None:
        raise NotFoundError("the package has no card")
    text = card.split("---\n", 2)[2] if card.startswith("---\n") and card.count("---\n") > 1 else card
    console.print(Markdown(text, hyperlinks=False))
