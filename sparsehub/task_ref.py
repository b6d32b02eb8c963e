"""Task references: how a user names a task, one of its versions, a channel, its very bytes, or a composition of tasks.

The one place that reads `@` and the composition syntax (`trec+tone*0.5`). A text is parsed where it enters; the hub,
the engine, the catalogue and the command line take the values. No torch, no numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sparsehub.errors import RequestError, UsageError

FORMS = "name, name@version, name@channel or name@sha256:<64 hex digits>"
LATEST = "latest"
BACKBONE = "backbone"  # what a request asks by this name is the model without any task
MOST_TERMS = 8  # of a composition
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?")
VERSION = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.+-]{0,62}[0-9A-Za-z])?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_LIKE = re.compile(r"(?i)sha256.*|[0-9a-f]{64}")
_CHANNEL = re.compile(r"[a-z](?:[a-z-]{0,30}[a-z])?")
_PATTERN = re.compile(r"(?=.*\*)(?:[a-z0-9._-]|\*(?!-?\.?[0-9]))+")
_WEIGHT = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class TaskRef:
    """One task, as it is referred to. At most one of version, channel and digest is given; none means `latest` in a
    hub, and the newest version in an endpoint. `str` gives the text that it was parsed from."""

    name: str
    version: str | None = None
    channel: str | None = None
    digest: str | None = None

    @property
    def pin(self) -> str | None:
        """What stands behind the `@`; None where there is none."""
        return next((pin for pin in (self.version, self.channel, self.digest) if pin is not None), None)

    def matches(self, version: str, digest: str) -> bool:
        """Whether a package of this name, version and digest is meant, where versions have no channels."""
        return self.pin in (None, "", version, digest)

    def __str__(self) -> str:
        return self.name if self.pin is None else f"{self.name}@{self.pin}"


@dataclass(frozen=True)
class Term:
    """One task of a composition, and the weight of its delta in the sum."""

    task: TaskRef
    weight: float = 1.0
    written: str = ""  # the weight as it was written, `*0.50` for example

    def __str__(self) -> str:
        return f"{self.task}{self.written}"


@dataclass(frozen=True)
class ModelRef:
    """What a request says as its `model`: a task, or a composition of tasks. `str` gives the text.

    A version may hold a plus sign, so `a@1.0+b` can be read both ways: as a task where such a one is served, else as a
    composition.
    """

    task: TaskRef  # read as one task

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Read as a composition; empty for a plain reference. Raises `RequestError` for a malformed one."""
        return _terms(str(self.task))

    @property
    def names(self) -> tuple[str, ...]:
        """Every task that it can mean, by name. Raises `RequestError` for a malformed composition."""
        return tuple(term.task.name for term in self.terms) or (self.task.name,)

    def __str__(self) -> str:
        return str(self.task)


def parse_reference(text: str) -> TaskRef:
    """Parse `name`, `name@version`, `name@channel` or `name@sha256:<64 hex>`; raises `UsageError`."""
    return check_reference(_split(text))


def reference_of(given: str | TaskRef) -> TaskRef:
    """What a hub is asked for, which may be a text still; raises `UsageError`."""
    return parse_reference(given) if isinstance(given, str) else check_reference(given)


def check_reference(found: TaskRef) -> TaskRef:
    """Raises `UsageError` unless a hub could hold what is referred to."""
    try:
        check_task_name(found.name)
        if found.digest is not None:
            check_digest(found.digest)
        elif found.version is not None:
            check_tag(found.version)
    except UsageError as error:
        problem = f"not a task reference: {error.problem}"
        raise UsageError(problem, found=repr(str(found))[:200], expected=FORMS) from error
    return found


def parse_model(text: str) -> ModelRef:
    """What a request says as its `model`. Any text is taken: what no task is called is found nowhere."""
    return ModelRef(_split(text))


Reference = str | TaskRef | ModelRef  # whatever an engine takes as a task: a text, or what was parsed already


def model_of(given: Reference) -> ModelRef:
    """What an engine is asked for, which may be a text or one task still."""
    if isinstance(given, ModelRef):
        return given
    return parse_model(given) if isinstance(given, str) else ModelRef(given)


def compose(terms: Sequence[Term]) -> ModelRef:
    """The composition of these tasks."""
    return parse_model("+".join(map(str, terms)))


def is_composed(name: str) -> bool:
    """Whether a task's name is that of a composition."""
    return "+" in name or "*" in name


def _split(text: str) -> TaskRef:
    """The parts of a reference, none of them checked."""
    name, separator, pin = text.partition("@")
    if not separator:
        return TaskRef(name)
    if pin.startswith("sha256:"):
        return TaskRef(name, digest=pin)
    return TaskRef(name, channel=pin) if is_channel(pin) else TaskRef(name, version=pin)


def _terms(text: str) -> tuple[Term, ...]:
    terms = text.split("+")
    if len(terms) == 1 and "*" not in text:
        return ()
    if len(terms) > MOST_TERMS:
        raise RequestError("too many tasks in one composition", found=len(terms), expected=f"at most {MOST_TERMS}")
    return tuple(_term(term, text) for term in terms)


def _term(term: str, text: str) -> Term:
    reference, star, weight = term.strip().partition("*")
    if not reference or (star and not _WEIGHT.fullmatch(weight)) or not math.isfinite(float(weight or 1)):
        raise RequestError("not a composition", found=repr(text)[:200], expected="name, name+name or name+name*0.5")
    return Term(_split(reference.strip()), float(weight) if star else 1.0, star + weight)


def is_pattern(model: str) -> bool:
    """Whether what a request says as its `model` means all tasks of such names, as `support-*` does: a star that is
    followed by a number is a weight."""
    return _PATTERN.fullmatch(model) is not None


def is_channel(word: str) -> bool:
    """Whether `word` names a channel, which may move, and no version, which never does: it has no digit."""
    return bool(_CHANNEL.fullmatch(word)) and not _DIGEST_LIKE.fullmatch(word)


def check_task_name(name: str) -> None:
    """Raises `UsageError` unless `name` can name a task."""
    if name == BACKBONE:
        problem = f"no task may be called {BACKBONE}: by this name a request asks the plain backbone"
        raise UsageError(problem, fix="give it another name")
    if not NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            "not a task name",
            found=repr(name)[:200],
            expected="1 to 96 of a-z 0-9 . _ -, beginning and ending with a letter or digit",
        )


def check_version(version: str) -> None:
    """Raises `UsageError` unless `version` can stand in a manifest."""
    if not VERSION.fullmatch(version) or ".." in version:
        raise UsageError(
            "not a version", found=repr(version)[:200], expected="letters, digits, dots, + and -, for example 1.0.0"
        )


def check_tag(version: str) -> None:
    """Raises `UsageError` unless `version` can name a version in a hub: not to be taken for a digest or a channel."""
    check_version(version)
    if _DIGEST_LIKE.fullmatch(version):
        raise UsageError("a version may not look like a digest", found=version, expected="for example 1.0.0")
    if not any(character.isdigit() for character in version):
        fix = "publish it under a numbered version and let a channel point at it: sparsehub tag"
        raise UsageError("a version has a digit, other words are channels", found=version, expected="1.0.0", fix=fix)


def check_digest(digest: str) -> None:
    """Raises `UsageError` unless `digest` is `sha256:` and 64 lower-case hex digits."""
    if not DIGEST.fullmatch(digest):
        raise UsageError("not a digest", found=repr(digest)[:200], expected="sha256:<64 hex digits>")


def is_safe(name: str, version: str = "0") -> bool:
    """Whether this name and version could have been published; anybody may have put other files there."""
    try:
        check_task_name(name)
        check_tag(version)
    except UsageError:
        return False
    return True
