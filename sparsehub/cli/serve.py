"""sparsehub serve: start the BentoML service."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sparsehub.cli.output import errors
from sparsehub.extras import require

SERVICE = "serving.service:SparsehubService"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    backbone: Annotated[str, typer.Option(help="A folder or an id of the Hugging Face Hub.")],
    hub: Annotated[str | None, typer.Option(help="The hub: a folder.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task reference or a package folder; may be repeated (default: all).")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 3000,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    queue_rows: Annotated[int, typer.Option(help="Rows that may wait before 429.")] = 4096,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one batch, padding included.")] = 4096,
    batch_rows: Annotated[int, typer.Option(help="Rows of one batch.")] = 64,
    mode: Annotated[str, typer.Option(help="auto (the cheapest way for each batch), swap or mixed.")] = "auto",
    device_mib: Annotated[int, typer.Option(help="Memory for tasks that are ready to run, 0: no bound.")] = 0,
    host_mib: Annotated[int, typer.Option(help="Host memory for tasks beside a GPU.")] = 0,
    cache_tokens: Annotated[int, typer.Option(help="Text generation: tokens that its cache holds.")] = 8192,
    new_tokens: Annotated[int, typer.Option(help="Text generation: the most tokens of one text.")] = 1024,
) -> None:
    """Serve tasks on one copy of a backbone, until interrupted. It is `bentoml serve` with these settings."""
    require("bentoml", "serve")
    require("fastapi", "serve")
    from serving.settings import PREFIX, Settings, read_settings

    if host not in LOOPBACK:
        errors.print(f"[yellow]warning:[/] {host} is open to the network, and this endpoint asks nobody for a key")
    settings = Settings(
        backbone=backbone,
        revision=revision,
        hub=hub,
        tasks=tuple(task or ()),
        dtype=dtype,
        device=device,
        queue_rows=queue_rows,
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        mode=mode,
        device_mib=device_mib,
        host_mib=host_mib,
        cache_tokens=cache_tokens,
        new_tokens=new_tokens,
    )
    variables = settings.to_environment()
    read_settings(variables)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k == "SPARSEHUB_CACHE"}
    environment = {"BENTOML_DO_NOT_TRACK": "True", **inherited, **variables}
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)
