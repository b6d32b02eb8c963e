"""sparsehub serve: start the BentoML service."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sparsehub.errors import UsageError
from sparsehub.extras import require

SERVICE = "serving.service:SparsehubService"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    backbone: Annotated[str, typer.Option(help="A folder or an id of the Hugging Face Hub.")],
    hub: Annotated[str | None, typer.Option(help="The hub: a folder, s3://, gs://, az:// or hf://.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task reference or a package folder; may be repeated (default: all).")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(envvar="SPARSEHUB_POLICY", help="A policy file: whose packages may run.")
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
    catalog: Annotated[
        str | None, typer.Option(help="What to serve, in place of --task: a file or HUB#NAME (see: sparsehub catalog).")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="The key file (see: sparsehub keys); followed while it runs.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--open", help="Answer everybody, without a key.")] = False,
    body_kib: Annotated[int, typer.Option(help="Size of a request.")] = 4096,
    max_items: Annotated[int, typer.Option(help="Inputs of a request.")] = 1024,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a request.")] = 262_144,
    console: Annotated[bool, typer.Option("--console", help="A page for browsers, at /console.")] = False,
) -> None:
    """Serve tasks on one copy of a backbone, until interrupted. It is `bentoml serve` with these settings."""
    require("bentoml", "serve")
    require("fastapi", "serve")
    if console:
        require("gradio", "console")
    from serving.settings import PREFIX, Settings, read_settings

    if host not in LOOPBACK and keys is None and not everybody:
        raise UsageError(
            f"{host} is open to the network, and this endpoint would ask nobody for a key",
            fix="give --keys FILE (make one: sparsehub keys add FILE NAME), or --open where something else guards it",
        )
    settings = Settings(
        backbone=backbone,
        revision=revision,
        hub=hub,
        tasks=tuple(task or ()),
        policy=policy,
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
        keys=keys,
        catalog=catalog,
        open=everybody,
        body_kib=body_kib,
        max_items=max_items,
        max_tokens=max_tokens,
        console=console,
    )
    variables = settings.to_environment()
    read_settings(variables)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) or k == "SPARSEHUB_CACHE"}
    environment = {"BENTOML_DO_NOT_TRACK": "True", **inherited, **variables}
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)
