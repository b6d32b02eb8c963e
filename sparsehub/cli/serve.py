"""sparsehub serve: start the BentoML service."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehub.cli.packages import hub_of_environment
from sparsehub.errors import UsageError
from sparsehub.extras import require

SERVICE = "serving.service:SparsehubService"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve() -> Callable[..., None]:
    """Serve tasks on one copy of a backbone, until interrupted. It is `bentoml serve` with these settings."""
    from serving.settings import Settings
    from sparsehub.cli.flags import with_flags

    return with_flags(Settings, required=True)(_serve)


def _serve(
    given: dict[str, Any],
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 3000,
) -> None:
    require("bentoml", "serve")
    require("fastapi", "serve")
    if given.get("console"):
        require("gradio", "console")
    from serving.preflight import check_address, check_settings
    from serving.settings import FLAGS, STARTED_BY, settings_from
    from sparsehub.settings import OF_MACHINE, PREFIX, errors_named

    if host not in LOOPBACK and "keys" not in given and not given.get("open"):
        raise UsageError(
            f"{host} is open to the network, and this endpoint would ask nobody for a key",
            fix="give --keys FILE (make one: sparsehub keys add FILE NAME), or --open where something else guards it",
        )
    settings = settings_from(_with_hub(given), FLAGS)
    address = check_address(host, port)
    with errors_named(FLAGS):
        check_settings(settings)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k in OF_MACHINE}
    environment = {"BENTOML_DO_NOT_TRACK": "True", **inherited, **settings.to_environment(), STARTED_BY: "serve"}
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", address, "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def _with_hub(given: dict[str, Any]) -> dict[str, Any]:
    """These settings with `SPARSEHUB_HUB` for the hub that is not given, where anything is fetched from it: nothing is
    where the catalogue lies in a hub of its own, or all tasks are package folders."""
    from serving.catalog.storage import hub_inside
    from sparsehub.package import MANIFEST_FILE

    tasks = [Path(task) for task in given.get("tasks") or ()]
    folders = bool(tasks) and all((task / MANIFEST_FILE).is_file() for task in tasks)
    hub = hub_of_environment()
    if hub is None or given.get("hub") or hub_inside(given.get("catalog") or "") or folders:
        return given
    return {**given, "hub": hub}
