"""The settings of an endpoint, each defined once: what it serves and how.

`sparsehub serve` makes its flags of them. A service reads them from its environment once, at start-up, however it is
started: by `sparsehub serve`, `bentoml serve`, a container, Ray Serve.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name
from sparsehub.settings import (
    FROZEN,
    OF_MACHINE,
    PREFIX,
    AtHome,
    Configuration,
    Fallback,
    Flag,
    LocationText,
    Names,
    Naming,
    OneOf,
    Setting,
    errors_named,
    flag_of,
    settings_of,
    shown,
    split_names,
)

LIMITS, TEXTS, ACCESS = "Limits", "Text generation", "Who may ask"  # boxes of the command line's help
DTYPES = ("float32", "float16", "bfloat16")
BATCH_MODES = ("auto", "swap", "mixed", "trunk")
WEIGHTS = ("float", "int8", "fp8", "nf4")
COMPILE_MODES = ("auto", "on", "off")
SERVER_GRACE = 30.0  # seconds that the server around the app waits longer than the app does
STARTED_BY = "SPARSEHUB_STARTED_BY"  # the variable by which `sparsehub serve` says that the user typed flags
STARTS = "SPARSEHUB_STARTS"  # of `supervision.py`
AUTO = "auto"
_NOT_SETTINGS = {*OF_MACHINE, STARTED_BY, STARTS}
_BOOLEANS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}


@dataclass(frozen=True, config=FROZEN)
class Settings(Configuration):
    """Everything that can be set for an endpoint. Raises `UsageError` for what makes no sense."""

    backbone: Annotated[
        LocationText, Field(description="The pretrained model: a folder, or an id of the Hugging Face Hub.")
    ]
    revision: Annotated[
        str | None, Field(description="A branch, tag or commit of the backbone on the Hugging Face Hub.")
    ] = None
    hub: Annotated[
        LocationText | None,
        Fallback("the catalogue's own, else SPARSEHUB_HUB"),
        Field(description="Where tasks are fetched: a folder, s3://, gs://, az:// or hf://."),
    ] = None
    tasks: Annotated[
        Names,
        AtHome,
        Flag(name="task", metavar="TASK", repeated=True),
        Fallback("all of the hub"),
        Field(description="A task to serve, by its reference or package folder; may be repeated."),
    ] = ()
    policy: Annotated[
        LocationText | None,
        Flag(panel=ACCESS, metavar="FILE", inherited=True),
        Fallback("the user's own"),
        Field(description="A policy: whose packages may run (docs/hub.md)."),
    ] = None
    dtype: Annotated[str, OneOf(DTYPES), Field(description="Data type of the backbone's weights.")] = "float32"
    device: Annotated[
        str, Field(description="Where it runs: cpu, cuda or cuda:1; auto is cuda where there is one.")
    ] = AUTO
    queue_rows: Annotated[
        int, Flag(panel=LIMITS), Field(ge=1, description="Rows that may wait; beyond them the answer is 429.")
    ] = 4096
    batch_tokens: Annotated[
        int, Flag(panel=LIMITS), Field(ge=1, description="Tokens of one batch, padding included.")
    ] = 4096
    batch_rows: Annotated[int, Flag(panel=LIMITS), Field(ge=1, description="Rows of one batch.")] = 64
    timeout: Annotated[
        float,
        Flag(panel=LIMITS, metavar="SECONDS"),
        Field(gt=0, description="How long a row may wait, and a request's body take."),
    ] = 50.0
    answer_timeout: Annotated[
        float,
        Flag(panel=LIMITS, metavar="SECONDS"),
        Field(gt=0, le=86400, description="How long an answer that is not streamed may take; beyond it 504."),
    ] = 300.0
    mode: Annotated[
        str, OneOf(BATCH_MODES), Field(description="How batches run; auto takes the cheapest way for each.")
    ] = "auto"
    weights: Annotated[
        str,
        OneOf(WEIGHTS),
        Field(
            description="What Linear maps multiply by: int8 is faster on a CPU; int8, fp8 and nf4 are smaller on a GPU."
        ),
    ] = "float"
    allow_quantised: Annotated[
        bool, Field(description="Let tasks that were trained on float weights run on quantised ones.")
    ] = False
    compile: Annotated[
        str,
        OneOf(COMPILE_MODES),
        Field(description="Compile passes beside serving, used where they are faster; on a GPU, capture decode steps."),
    ] = "auto"
    device_mib: Annotated[
        int,
        Flag(panel=LIMITS, metavar="MIB"),
        Field(ge=0, description="Memory for tasks that are ready to run; 0 for no bound."),
    ] = 0
    host_mib: Annotated[
        int,
        Flag(panel=LIMITS, metavar="MIB"),
        Field(ge=0, description="Host memory for tasks beside a GPU; 0 for none."),
    ] = 0
    state_cache_mib: Annotated[
        int,
        Flag(panel=LIMITS, metavar="MIB"),
        Field(ge=0, description="Memory for the states of texts that come again for other tasks; 0 for none."),
    ] = 0
    cache_tokens: Annotated[
        int, Flag(panel=TEXTS), Field(ge=1, description="Tokens whose keys and values the cache holds.")
    ] = 8192
    generation_batch_tokens: Annotated[
        int, Flag(panel=TEXTS), Field(ge=1, description="Tokens of one step; longer prompts take several.")
    ] = 256
    sequences: Annotated[int, Flag(panel=TEXTS), Field(ge=1, description="Texts that run at once.")] = 64
    waiting: Annotated[
        int, Flag(panel=TEXTS), Field(ge=1, description="Texts that may wait; beyond them the answer is 429.")
    ] = 512
    new_tokens: Annotated[int, Flag(panel=TEXTS), Field(ge=1, description="Tokens of one answer, at most.")] = 1024
    keys: Annotated[
        LocationText | None,
        Flag(panel=ACCESS, metavar="FILE"),
        Field(description="The key file (see: sparsehub keys); it is read again when it changes."),
    ] = None
    catalog: Annotated[
        LocationText | None,
        Flag(metavar="LOCATION"),
        Field(description="What to serve, in place of tasks: a file or HUB#NAME (see: sparsehub catalog)."),
    ] = None
    open: Annotated[bool, Flag(panel=ACCESS), Field(description="Answer everybody, without a key.")] = False
    host_names: Annotated[
        Names,
        Flag(name="host-name", panel=ACCESS, metavar="NAME", repeated=True),
        Fallback("with keys or open any, else this machine's own"),
        Field(description="A name by which clients may call the endpoint, beside localhost; may be repeated."),
    ] = ()
    proxies: Annotated[
        Names,
        Flag(name="proxy", panel=ACCESS, metavar="ADDRESS", repeated=True),
        Fallback("none"),
        Field(description="An address or network of proxies whose X-Forwarded-For is believed; may be repeated."),
    ] = ()
    body_kib: Annotated[
        int, Flag(panel=LIMITS, metavar="KIB"), Field(ge=1, description="Size of one request; beyond it 413.")
    ] = 4096
    max_items: Annotated[int, Flag(panel=LIMITS), Field(ge=1, description="Inputs of one request.")] = 1024
    max_tokens: Annotated[int, Flag(panel=LIMITS), Field(ge=1, description="Tokens of all inputs of one request.")] = (
        262_144
    )
    console: Annotated[bool, Field(description="A page for browsers, at /console.")] = False
    header_kib: Annotated[
        int,
        Flag(panel=LIMITS, metavar="KIB"),
        Field(ge=1, description="Size of a request's line and headers; beyond it 431."),
    ] = 64
    header_seconds: Annotated[
        float,
        Flag(panel=LIMITS, metavar="SECONDS"),
        Field(gt=0, description="How long a client may take to send headers, or to take what it is sent."),
    ] = 10.0
    connections: Annotated[
        int, Flag(panel=LIMITS), Field(ge=1, description="Connections that may be open; beyond them 503.")
    ] = 2048
    address_connections: Annotated[
        int, Flag(panel=LIMITS), Field(ge=1, description="Connections from one address; a proxy is one address.")
    ] = 1024

    def __post_init__(self) -> None:
        if self.catalog is not None and self.tasks:
            fix = f"leave out {shown('tasks')}, or {shown('catalog')}"
            raise UsageError("the catalogue says which tasks are served", found=", ".join(self.tasks), fix=fix)
        for proxy in self.proxies:
            _check_proxy(proxy)
        if self.keys is not None and self.open:
            raise UsageError("an endpoint with keys is not open", fix=f"leave out {shown('open')}, or {shown('keys')}")

    def to_environment(self) -> dict[str, str]:
        """The variables that `read_settings` turns back into these settings."""
        values = {setting.variable: getattr(self, setting.name) for setting in settings_of(Settings)}
        return {
            variable: ",".join(value) if isinstance(value, tuple) else str(value)
            for variable, value in values.items()
            if value is not None
        }


def _check_proxy(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        problem = f"{shown('proxies')}: not the address of a proxy"
        raise UsageError(problem, found=text, expected="for example 10.0.0.7 or 10.0.0.0/24") from error


def settings_from(given: Mapping[str, Any], naming: Naming) -> Settings:
    """Settings by their names; errors name them as `naming` says."""
    with errors_named(naming):
        return Settings(**split_names(Settings, given))


FLAGS = Naming("serve", partial(flag_of, Settings))
VARIABLES = Naming("the environment", lambda name: PREFIX + name.upper())


def naming_of(environment: Mapping[str, str]) -> Naming:
    """How errors name the settings of a service that was started in this environment: as the user wrote them."""
    return FLAGS if environment.get(STARTED_BY) else VARIABLES


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from variables like SPARSEHUB_BACKBONE; raises `UsageError` for unknown or malformed ones."""
    variables = {setting.variable: setting for setting in settings_of(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable not in variables:
            raise UsageError(unknown_name("setting", variable, list(variables)))
        values[variables[variable].name] = _parse(variables[variable], text)
    if "backbone" not in values:
        fix = f"set {PREFIX}BACKBONE, or start with: sparsehub serve --backbone ..."
        raise UsageError("no backbone is set", fix=fix)
    return settings_from(values, VARIABLES)


def server_timeout(environment: Mapping[str, str]) -> float:
    """Seconds after which BentoML gives a request up, in its own words: later than we do. It asks when the service is
    imported; a variable that is malformed is refused by `read_settings` after that."""
    setting = next(setting for setting in settings_of(Settings) if setting.name == "answer_timeout")
    try:
        seconds = float(environment[setting.variable])
    except (KeyError, ValueError):
        seconds = Settings.answer_timeout
    return seconds + SERVER_GRACE if seconds > 0 else SERVER_GRACE


def _parse(setting: Setting, text: str) -> Any:
    try:
        if setting.type is bool:
            return _BOOLEANS[text]
        return setting.type(text) if setting.type in (int, float) else text
    except KeyError as error:
        raise UsageError(f"{setting.variable} must be True or False", found=repr(text)) from error
    except ValueError as error:
        raise UsageError(f"{setting.variable} must be a number", found=repr(text)) from error


def absolute(settings: Settings) -> Settings:
    """The same settings for processes that start in other folders: paths that are there become absolute ones."""
    paths = ("backbone", "hub", "policy", "keys", "catalog")
    given = {name: getattr(settings, name) for name in paths if getattr(settings, name) is not None}
    moved: dict[str, Any] = {name: _absolute(text) for name, text in given.items()}
    return dataclasses.replace(settings, **moved)


def _absolute(text: str) -> str:
    """A place may be HUB#NAME; an id or an address is no path that is there."""
    path, mark, name = text.partition("#")
    found = Path(path)
    return f"{found.absolute()}{mark}{name}" if found.exists() else text
