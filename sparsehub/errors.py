"""Every exception that sparsehub raises for something a user can cause or fix.

SparsehubError
├── UsageError                 a command or call was asked for something it cannot do
│   └── MissingExtraError      an optional dependency is not installed
├── FormatError                a file is not what docs/format.md says it must be
│   ├── DeltaError             ... the sparse part
│   ├── ManifestError          ... sparsehub.json
│   └── IntegrityError         ... bytes that differ from the digest that was promised
├── BackboneError              the backbone cannot be loaded, or is of a kind that is not supported
│   └── BackboneMismatchError  a package was made for other weights
├── DataError                  a data set, a row or a label that cannot be used
├── HubError                   a hub could not do what was asked
│   ├── NotFoundError          no such task or version
│   ├── VersionExistsError     a published version is never written twice
│   ├── ConflictError          a channel was moved meanwhile by another client
│   └── UnreachableError       no answer, or one that broke off: try again later
├── TrustError                 a package is not signed as the policy demands
├── AccessError                an endpoint does not let this caller do that
│   ├── UnauthenticatedError   no key, or an unknown one
│   ├── ForbiddenError         the key does not allow this
│   └── RateLimitError         the key's or the task's rate is used up; carries `retry_after` in seconds
└── EngineError                a running engine could not answer
    ├── RequestError           the request itself is at fault
    ├── UnknownTaskError       no such task is served here
    ├── QueueFullError         too many requests are queued; carries `retry_after` in seconds
    ├── CancelledError         the caller disconnected, or the deadline passed
    ├── NotFiniteError         the model's answer to this input holds NaN or infinity
    ├── StoppingError          the engine is shutting down: another replica may answer
    └── UnhealthyError         the base weights could not be put back; no more work is taken
"""

from __future__ import annotations


class SparsehubError(Exception):
    """What was found, what was expected, what to do: one readable message.

    `problem` is the sentence; `found`, `expected` and `fix` are added to it where they help.
    """

    def __init__(self, problem: str, *, found: object = None, expected: object = None, fix: str | None = None):
        self.problem, self.found, self.expected, self.fix = problem, found, expected, fix
        parts = [problem]
        if found is not None:
            parts.append(f"found: {found}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if fix is not None:
            parts.append(f"to do: {fix}")
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments would otherwise be lost when an error crosses a process boundary.
        return _rebuild, (type(self), self.args[0], dict(self.__dict__))


def _rebuild(kind: type[SparsehubError], message: str, state: dict[str, object]) -> SparsehubError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class UsageError(SparsehubError):
    """A command or call was asked for something it cannot do."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message holds the exact install line."""


class FormatError(SparsehubError):
    """A file is not what docs/format.md says it must be."""


class DeltaError(FormatError):
    """The sparse part of a package is malformed."""


class ManifestError(FormatError):
    """sparsehub.json is malformed."""


class IntegrityError(FormatError):
    """Bytes differ from the digest or the size that was promised for them."""


class BackboneError(SparsehubError):
    """The backbone cannot be loaded, or is of a kind that is not supported."""


class BackboneMismatchError(BackboneError):
    """A package was made for other weights than these."""


class DataError(SparsehubError):
    """A data set, a row or a label cannot be used."""


class HubError(SparsehubError):
    """A hub could not do what was asked."""


class NotFoundError(HubError):
    """No such task or version in the hub."""


class VersionExistsError(HubError):
    """The version was published before; a published version is never written twice."""


class ConflictError(HubError):
    """Another client moved a channel since it was read; nothing was changed."""


class UnreachableError(HubError):
    """A hub did not answer, or broke off in the middle. The same call may succeed later."""


class TrustError(SparsehubError):
    """A package is not signed as the policy demands; nothing of it is used."""


class AccessError(SparsehubError):
    """An endpoint does not let this caller do that."""


class UnauthenticatedError(AccessError):
    """The request carries no key, or one that the endpoint does not know."""


class ForbiddenError(AccessError):
    """The key is valid, but does not allow this."""


class RateLimitError(AccessError):
    """A rate is used up. `retry_after` is the suggested wait in seconds."""

    def __init__(
        self,
        problem: str,
        *,
        retry_after: float = 1.0,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ):
        super().__init__(problem, found=found, expected=expected, fix=fix)
        self.retry_after = retry_after


class EngineError(SparsehubError):
    """A running engine could not answer."""


class RequestError(EngineError):
    """The request itself is at fault: an empty or over-long input, a wrong field."""


class UnknownTaskError(EngineError):
    """No such task is served here."""


class QueueFullError(EngineError):
    """Too many requests are queued. `retry_after` is the suggested wait in seconds."""

    def __init__(self, problem: str, *, retry_after: float, fix: str | None = None):
        super().__init__(problem, fix=fix)
        self.retry_after = retry_after


class CancelledError(EngineError):
    """The caller disconnected, or the deadline passed, before the answer was ready."""


class NotFiniteError(EngineError):
    """The model's answer holds NaN or infinity, so there is no answer: the weights may be damaged in memory, or the
    dtype is too small for this input."""

    def __init__(
        self,
        problem: str = "the model's answer is not a number",
        *,
        found: object = "NaN or infinity",
        expected: object = None,
        fix: str | None = "send it again; where it stays, serve the task in bfloat16 or float32",
    ):
        super().__init__(problem, found=found, expected=expected, fix=fix)


class StoppingError(EngineError):
    """The engine is shutting down: it accepts no new requests, and ends those that it cannot finish in time."""

    def __init__(
        self,
        problem: str = "the engine is stopping",
        *,
        found: object = None,
        expected: object = None,
        fix: str | None = "send the request to another replica",
    ):
        super().__init__(problem, found=found, expected=expected, fix=fix)


class UnhealthyError(EngineError):
    """The base weights could not be restored; the engine accepts no more requests."""
