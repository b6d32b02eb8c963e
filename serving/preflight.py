"""What can be checked of an endpoint's settings before a model is loaded; `sparsehub serve` asks it first.

Nothing here loads torch but for a device that is a GPU, so a wrong setting is an error in about a second.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import TypeVar

from serving.auth import parse_keys
from serving.catalog import open_catalog, parse_catalog
from serving.catalog.storage import hub_beside, last_good_file
from serving.settings import AUTO, Settings
from sparsehub.backbone.checkpoint import WEIGHTS_FILE, Checkpoint, find_checkpoint, open_checkpoint, weight_files
from sparsehub.backbone.gguf_file import GGUF_SUFFIX
from sparsehub.errors import (
    BackboneMismatchError,
    FormatError,
    NotFoundError,
    SparsehubError,
    UnreachableError,
    UsageError,
)
from sparsehub.files import strict_json
from sparsehub.hub import PackageHub, open_hub
from sparsehub.hub.cache import check_cache
from sparsehub.hub.documents import FileDocument
from sparsehub.hub.user_settings import read_policy
from sparsehub.package import MANIFEST_FILE, Manifest, read_manifest
from sparsehub.package.validation import package_beside
from sparsehub.settings import shown

T = TypeVar("T")
HUB_SECONDS = 5.0  # that a hub over the network may take to answer
CONFIG_FILE = "config.json"
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def check_settings(settings: Settings) -> None:
    """Look at everything that the settings name: device, policy, key file, catalogue, hub, tasks, backbone.

    Raises `UsageError` for what is not there or cannot be used, which names the setting as the user wrote it.
    """
    check_cache()
    with _blaming("device"):
        check_device(settings.device)
    with _blaming("policy"):
        read_policy(Path(settings.policy) if settings.policy else None)
    if settings.keys is not None:
        with _blaming("keys"):
            _check_keys(settings.keys)
    if settings.catalog is not None:
        _check_catalog(settings.catalog, settings.hub)
    manifests = _named_tasks(settings)
    with _blaming("backbone"):
        checkpoint = _checkpoint(settings)
    with _blaming("tasks"):
        for manifest in manifests:
            _check_fit(manifest, checkpoint)


def check_address(host: str, port: int) -> str:
    """The numeric address of `host`, on which `port` is free; raises `UsageError`."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        raise UsageError("--host is no IP address", found=host, expected="for example 127.0.0.1 or 0.0.0.0") from error
    if not 0 < port < 65536:
        raise UsageError("--port is out of range", found=port, expected="1 to 65535")
    try:
        socket.create_server((address, port), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        fix = "stop what listens there, or give another --port"
        raise UsageError(f"{host}:{port} cannot be listened on", found=reason, fix=fix) from error
    return address


def check_device(name: str) -> None:
    """Raises `UsageError` for a device that is not here; asks torch only for one that is a GPU."""
    if name in (AUTO, "cpu"):
        return
    if not _DEVICE.fullmatch(name):
        raise UsageError("no such device", found=name, expected="auto, cpu, cuda or cuda:1")
    import torch  # lazy: it takes seconds

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(name.partition(":")[2] or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise UsageError("no such device here", found=name, expected=there)


def _check_keys(path: str) -> None:
    found = FileDocument(Path(path)).read()
    if found is None:
        raise UsageError(f"there is no file {path}", fix=f"make it: sparsehub keys add {path} NAME")
    parse_keys(found[0])


def _check_catalog(location: str, hub: str | None) -> None:
    """A catalogue that cannot be read is no error where its last good state is here: an endpoint serves that."""
    with _blaming("catalog"):
        document = open_catalog(location)
        if not last_good_file(document).exists():
            found = _in_time(document.read, location)
            if found is None:
                raise UsageError(f"there is no catalogue at {location}", fix=f"sparsehub catalog add {location} TASK")
            parse_catalog(found[0])
    hub_beside(location, hub, shown("hub"))


def _named_tasks(settings: Settings) -> list[Manifest]:
    """The manifests of the tasks that the settings name; all of a hub is read as it is asked for."""
    with _blaming("hub"):
        hub = open_hub(settings.hub) if settings.hub else None
        if hub is not None and not settings.tasks and not settings.catalog:
            _in_time(lambda: everything_in(hub), hub.where)
    with _blaming("tasks"):
        return [_in_time(partial(_manifest, reference, hub), reference) for reference in settings.tasks]


def _manifest(reference: str, hub: PackageHub | None) -> Manifest:
    if (Path(reference) / MANIFEST_FILE).is_file():
        return read_manifest(Path(reference))
    home = needed_hub(reference, hub)
    resolved = home.resolve(reference)
    return home.manifest(resolved.name, resolved.digest)


def needed_hub(reference: str, hub: PackageHub | None) -> PackageHub:
    """The hub that a task is fetched from; raises `UsageError` where there is none."""
    if hub is None:
        problem = f"{reference!r} is no package folder, and no hub is given"
        near = package_beside(Path(reference))
        fix = f"give {shown('hub')}"
        raise UsageError(problem, fix=f"{fix}, or the package folder {near}" if near else fix)
    return hub


def everything_in(hub: PackageHub) -> Sequence[str]:
    """Every task of a hub, by the name that means what its `latest` says; no package is read for that.

    Raises `NotFoundError` for a hub without one.
    """
    names = hub.backend.names()
    if not names:
        fix = "push one: sparsehub push PACKAGE HUB --version 1.0.0"
        raise NotFoundError(f"the hub {hub.where} holds no task", fix=fix)
    return names


def _checkpoint(settings: Settings) -> Checkpoint | None:
    """The backbone's, fetched where it is not on this machine; None where no task is named that must fit it."""
    reference, revision = settings.backbone, settings.revision
    if revision is not None and Path(reference).expanduser().is_dir():
        raise UsageError(f"{reference} is a folder, which has no revisions", fix=f"leave out {shown('revision')}")
    folder, _ = find_checkpoint(reference, revision)
    if weight_files(folder)[0].suffix != GGUF_SUFFIX:  # which holds its configuration itself
        _check_configuration(folder)
    return open_checkpoint(reference, revision) if settings.tasks else None


def _check_configuration(folder: Path) -> None:
    try:
        strict_json((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
    except (OSError, FormatError) as error:
        expected = f"a model's folder, with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise UsageError(f"{folder} has no readable {CONFIG_FILE}", found=str(error), expected=expected) from error


def _check_fit(manifest: Manifest, checkpoint: Checkpoint | None) -> None:
    """Raises `BackboneMismatchError` for a package that changes parameters which no file of the checkpoint has."""
    if checkpoint is None or manifest.delta is None or manifest.backbone.fingerprint == checkpoint.fingerprint:
        return
    there = set(checkpoint.digests.values())
    missing = sorted(name for name, record in manifest.delta.parameters.items() if record.digest not in there)
    if missing:
        raise BackboneMismatchError(
            f"{manifest.name}@{manifest.version} changes {missing[0]!r} of another backbone",
            found=checkpoint.id,
            expected=manifest.backbone.id,
            fix=f"give it to {shown('backbone')}, or leave the task out",
        )


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """An error inside is one of the setting called `name`."""
    try:
        yield
    except SparsehubError as error:
        problem = f"{shown(name)}: {error.problem}"
        raise UsageError(problem, found=error.found, expected=error.expected, fix=error.fix) from error


def _in_time(call: Callable[[], T], where: str) -> T:
    """What a call returns or raises; raises `UnreachableError` where a hub takes too long to answer."""
    done: list[T] = []
    failed: list[SparsehubError] = []

    def run() -> None:
        try:
            done.append(call())
        except SparsehubError as error:
            failed.append(error)

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry, and we of the outcome
    thread = threading.Thread(target=copy_context().run, args=(run,), name="sparsehub-preflight", daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if failed:
        raise failed[0]
    if not done:
        raise UnreachableError(f"{where} does not answer", found=f"nothing within {HUB_SECONDS:g} s", fix="try again")
    return done[0]
