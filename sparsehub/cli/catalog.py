"""sparsehub catalog: the catalogue of tasks that endpoints serve, in one document that all of them follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.help_page import Verb, VerbGroup
from sparsehub.cli.output import JSON, console, progress, show_json, show_table
from sparsehub.cli.packages import HUB_VARIABLE, hub_of_environment

if TYPE_CHECKING:
    from serving.catalog import Catalog, CatalogEntry
    from sparsehub.hub import PackageHub

app = typer.Typer(
    cls=VerbGroup,
    help="The tasks that endpoints serve: add, remove, set, canary, promote, rollback, status.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Where = Annotated[str, typer.Argument(help="The catalogue: a file, or HUB#NAME for one in a hub.")]
TaskName = Annotated[str, typer.Argument(help="A task in the catalogue.")]
HubOption = Annotated[
    str | None,
    typer.Option(help=f"The hub of its packages (default: the hub that holds the catalogue, else {HUB_VARIABLE})."),
]
Expect = Annotated[int | None, typer.Option(help="Fail unless the catalogue is at this revision.")]
Items = Annotated[float | None, typer.Option(help="Quota of one replica, for all callers together.")]


@app.command("add", cls=Verb)
def add(
    catalog: Where,
    reference: Annotated[str, typer.Argument(help="A task reference; the catalogue gets its exact version.")],
    hub: HubOption = None,
    pin: Annotated[bool, typer.Option(help="Pin it in memory.")] = False,
    items_per_second: Items = None,
    tokens_per_second: Items = None,
    revision: Expect = None,
) -> None:
    """Add a task."""
    from serving.catalog import CatalogEntry, changes
    from serving.catalog.storage import target_of

    name, target = target_of(reference, _packages(catalog, hub))
    entry = CatalogEntry(target, None, 0.0, pin, items_per_second, tokens_per_second)
    _change(catalog, revision, lambda found: changes.add(found, name, entry))


@app.command("remove", cls=Verb)
def remove(catalog: Where, task: TaskName, revision: Expect = None) -> None:
    """Remove a task; requests in flight are still answered."""
    from serving.catalog import changes

    _change(catalog, revision, lambda found: changes.remove(found, task))


@app.command("set", cls=Verb)
def set_options(
    catalog: Where,
    task: TaskName,
    hub: HubOption = None,
    version: Annotated[str | None, typer.Option(help="Serve this version to all callers at once.")] = None,
    pin: Annotated[bool | None, typer.Option(help="Pin it in memory, or unpin it.")] = None,
    items_per_second: Annotated[float | None, typer.Option(help="Quota of one replica; 0 removes it.")] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="Quota of one replica; 0 removes it.")] = None,
    revision: Expect = None,
) -> None:
    """Change a task's version, pin or quotas."""
    from serving.catalog import changes
    from serving.catalog.storage import target_of

    quotas = {"items_per_second": items_per_second, "tokens_per_second": tokens_per_second}
    options: dict[str, Any] = {name: quota or None for name, quota in quotas.items() if quota is not None}
    options |= {} if pin is None else {"pinned": pin}
    target = None if version is None else target_of(f"{task}@{version}", _packages(catalog, hub))[1]

    def edit(found: Catalog) -> Catalog:
        moved = found if target is None else changes.move(found, task, target)
        return changes.set_options(moved, task, **options) if options or target is None else moved

    _change(catalog, revision, edit)


@app.command("canary", cls=Verb)
def canary(
    catalog: Where,
    reference: Annotated[str, typer.Argument(help="The version to try: name@version.")],
    percent: Annotated[float, typer.Option(help="Share of the callers; the same callers every time.")] = 5.0,
    hub: HubOption = None,
    revision: Expect = None,
) -> None:
    """Serve another version to a share of the callers, or change that share."""
    from serving.catalog import changes
    from serving.catalog.storage import target_of

    name, target = target_of(reference, _packages(catalog, hub))
    _change(catalog, revision, lambda found: changes.canary(found, name, target, percent))


@app.command("promote", cls=Verb)
def promote(catalog: Where, task: TaskName, revision: Expect = None) -> None:
    """Serve the canary's version to all callers."""
    from serving.catalog import changes

    _change(catalog, revision, lambda found: changes.promote(found, task))


@app.command("rollback", cls=Verb)
def rollback(catalog: Where, task: TaskName, revision: Expect = None) -> None:
    """End a canary; where none runs, go back to the stable version before this one."""
    from serving.catalog import changes

    _change(catalog, revision, lambda found: changes.rollback(found, task))


@app.command("status", cls=Verb)
def status(catalog: Where, as_json: bool = JSON) -> None:
    """Show the catalogue as it is stored; an endpoint's own state is at its /v1/admin/catalog."""
    from serving.catalog import open_catalog, parse_catalog
    from sparsehub.errors import NotFoundError

    stored = open_catalog(catalog).read()
    if stored is None:
        raise NotFoundError(f"there is no catalogue at {catalog}", fix="create one: sparsehub catalog add")
    found = parse_catalog(stored[0])
    if as_json:
        show_json(found.to_json())
        return
    show_catalog(found)


def show_catalog(found: Catalog) -> None:
    """What a catalogue says, a line for each task."""
    console.print(f"revision {found.revision}, {len(found.tasks)} tasks")
    columns = ("task", "stable", "canary", "pinned", "items/s", "tokens/s", "before")
    rows = [_row(name, entry) for name, entry in sorted(found.tasks.items())]
    show_table(columns, rows, drop=("before", "tokens/s", "items/s"))


def _row(name: str, entry: CatalogEntry) -> tuple[str, ...]:
    canary = f"{entry.canary.version} to {entry.canary_percent:g}%" if entry.canary else "-"
    quotas = (f"{quota:g}" if quota else "-" for quota in (entry.items_per_second, entry.tokens_per_second))
    before = ", ".join(target.version for target in entry.before) or "-"
    return (name, entry.stable.version, canary, "yes" if entry.pinned else "-", *quotas, before)


def _packages(catalog: str, hub: str | None) -> PackageHub:
    """The hub of a catalogue's packages, as `sparsehub serve` finds it."""
    from serving.catalog.storage import hub_beside, hub_inside

    return hub_beside(catalog, hub if hub or hub_inside(catalog) else hub_of_environment())


def _change(where: str, revision: int | None, edit: Callable[[Catalog], Catalog]) -> None:
    from serving.catalog import change_catalog, changes, open_catalog

    def edited(found: Catalog) -> Catalog:
        changes.expect(found, revision)
        return edit(found)

    now = change_catalog(open_catalog(where), edited)
    progress(f"{where} is at revision {now.revision}; endpoints pick it up within seconds")
