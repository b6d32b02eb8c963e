"""How commands find packages, hubs and policies: by folder or by reference, from their options."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from sparsehub.cli.transfers import transfer
from sparsehub.errors import UsageError
from sparsehub.task_ref import TaskRef, parse_reference

if TYPE_CHECKING:
    from sparsehub.hub import PackageHub
    from sparsehub.package import Package
    from sparsehub.package.policy import Policy

T = TypeVar("T")
POLICY = "A policy file (default: the user's settings)."
WHERE = "The hub: a folder, s3://, gs://, az:// or hf://name."
HUB_VARIABLE = "SPARSEHUB_HUB"
HUB: Any = typer.Option("--hub", help=WHERE, envvar=HUB_VARIABLE)
HUB_ARGUMENT: Any = typer.Argument(help=f"{WHERE} Default: --hub, else {HUB_VARIABLE}.")
HUB_BESIDE: Any = typer.Option("--hub", help=f"The hub, in place of HUB (default: {HUB_VARIABLE}).")


def hub_of_environment() -> str | None:
    """The hub of a command that is given none, by a flag or by a file or a catalogue that it reads: `SPARSEHUB_HUB`.

    For commands where one of those comes before the variable; the others have it in `HUB`.
    """
    return os.environ.get(HUB_VARIABLE) or None


def one_hub(argument: str | None, option: str | None) -> str | None:
    """The hub of a verb that takes it as an argument or by `--hub`; raises `UsageError` where both name one."""
    if argument is not None and option is not None:
        raise UsageError("two hubs are named", found=f"{argument} and --hub {option}", fix="give one of them")
    return argument if argument is not None else option


def hub_named(argument: str | None, option: str | None) -> str:
    """The same, else that of the environment; raises `UsageError` where there is none either."""
    hub = one_hub(argument, option) or hub_of_environment()
    if hub is None:
        raise UsageError("no hub is given", fix=f"name it, as an argument or by --hub, or set {HUB_VARIABLE}")
    return hub


def hub_and_name(first: str | None, second: str | None, option: str | None) -> tuple[str, str | None]:
    """The hub, and the name that may stand behind it, of verbs that take `HUB [NAME]`, `--hub HUB [NAME]`, or a name
    alone where the environment names the hub.

    first, second: the arguments. Raises `UsageError` where there is no hub, or one too many.
    """
    if second is not None:
        return hub_named(first, option), second
    if option is None and first is not None and (hub_of_environment() is None or _is_location(first)):
        return first, None
    return hub_named(None, option), first


def _is_location(text: str) -> bool:
    """Whether a word is a hub rather than a task's name or what is searched for."""
    return "://" in text or "/" in text or Path(text).expanduser().is_dir()


def with_package(reference: str, hub: str | None, use: Callable[[Path], T], policy: Policy | None = None) -> T:
    """What `use` returns for a package's folder, after the policy has allowed it."""
    from sparsehub.hub.package_loader import use_package
    from sparsehub.hub.user_settings import read_policy
    from sparsehub.package import read_manifest
    from sparsehub.package.manifest import MANIFEST_FILE

    folder = Path(reference).expanduser()
    if hub is None or (folder / MANIFEST_FILE).is_file():
        (policy or read_policy()).check(folder, read_manifest(folder))
        return use(folder)
    with transfer(f"fetching {reference}") as report:
        return use_package(reference, open_location(hub), lambda folder, _: use(folder), policy=policy, progress=report)


def load_reference(reference: str, hub: str | None) -> Package:
    """The package in a folder, or of a task reference in the hub."""
    from sparsehub.hub.package_loader import load_package

    where = open_location(hub) if hub is not None else None
    name = str(Path(reference).expanduser()) if "/" in reference else reference
    with transfer(f"fetching {reference}") as report:
        return load_package(name, where, progress=report)


def open_location(location: str) -> PackageHub:
    """The hub at a location."""
    from sparsehub.hub import open_hub

    return open_hub(location)


def policy_of(path: Path | None, key: Path | None = None, root: Path | None = None) -> Policy:
    """The policy in a file, or one that requires a signature by a key or under a root certificate; else the user's."""
    from sparsehub.hub.user_settings import read_policy
    from sparsehub.package.policy import Policy

    if sum(option is not None for option in (path, key, root)) > 1:
        raise UsageError("a policy, a key and a certificate are three policies", fix="give one of them")
    if key is not None:
        return Policy(True, trusted_keys={key.stem: key})
    if root is not None:
        return Policy(True, trusted_certificates=(root,))
    return read_policy(path)


def task_of(reference: str) -> str:
    """The name of a task; raises `UsageError` for a reference with a version, channel or digest."""
    parsed = parse_reference(reference)
    if parsed != TaskRef(parsed.name):
        raise UsageError("a task is named here, and none of its versions", found=reference, expected=parsed.name)
    return parsed.name
