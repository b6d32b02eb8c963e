"""Client: the calls of huggingface_hub that `HuggingFaceBackend` makes, with ranges, size limits and our own errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
)

from sparsehub.errors import HubError, IntegrityError, NotFoundError, UnreachableError, UsageError
from sparsehub.files import CHUNK
from sparsehub.hub.retry import with_retries

T = TypeVar("T")

MISSING = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
LOGIN = "log in (hf auth login) or set HF_TOKEN, if it is a private one"
_TIMEOUT = 60.0  # seconds without a byte
_PASSING = (408, 429, 500, 502, 503, 504)
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")
# The client's HTTP library changes between its versions; what it raises is a base of the client's own error.
_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of huggingface_hub in a block: the caller shows its own."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class Client:
    """The calls that the backend makes. api: endpoint and token, from the environment or from `hf auth login`."""

    def __init__(self, api: HfApi):
        self.api = api

    def call(self, repo: str, action: Callable[[], T]) -> T:
        """The result of a call that may be repeated; it is retried where the network failed.

        The client's listings retry by themselves and need no more than `client_errors`.
        """

        def guarded() -> T:
            with client_errors(repo):
                return action()

        return with_retries(guarded)

    def refs(self, repo: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Branches and tags, by name to the commits they point at; None where there is no such repository."""
        try:
            found = self.call(repo, lambda: self.api.list_repo_refs(repo))
        except RepositoryNotFoundError:
            return None
        branches = {ref.name: ref.target_commit for ref in found.branches}
        return branches, {ref.name: ref.target_commit for ref in found.tags}

    def read(self, repo: str, commit: str, path: str, limit: int) -> bytes | None:
        """A small file of a commit; None where there is none; raises `IntegrityError` beyond `limit` bytes."""

        def whole() -> bytes:
            data = bytearray()
            for chunk in self.stream(repo, commit, path, 0, None)[1]:
                data += chunk
                if len(data) > limit:
                    found = f"more than {limit} bytes"
                    raise IntegrityError(f"{path} in {repo} is too large", found=found, expected=f"at most {limit}")
            return bytes(data)

        try:
            return with_retries(whole)
        except MISSING:
            return None

    def stream(self, repo: str, commit: str, path: str, start: int, stop: int | None) -> tuple[int, Iterator[bytes]]:
        """The size that the server states (-1 where it states none), and the bytes from `start` to `stop` in chunks.

        Raises one of `MISSING` where there is no such file.
        """
        chunks = self._stream(repo, commit, path, start, stop)
        size = next(chunks)
        assert isinstance(size, int)
        return size, chunks  # type: ignore[return-value]

    def _stream(self, repo: str, commit: str, path: str, start: int, stop: int | None) -> Iterator[int | bytes]:
        """First the size, then the chunks."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(repo, path, revision=commit, endpoint=self.api.endpoint)
        headers = {**build_hf_headers(token=self.api.token), "Accept-Encoding": "identity"}
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        with (
            client_errors(repo),
            get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response,
        ):
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            partial = response.status_code == 206
            yield _stated_size(response, partial)
            chunks = response.iter_bytes(CHUNK)
            yield from chunks if partial or stop is None else _part(chunks, start, stop)


def _stated_size(response: Any, partial: bool) -> int:
    if partial:
        total = _TOTAL.fullmatch(response.headers.get("content-range", ""))
        return int(total[1]) if total else -1
    length = response.headers.get("content-length", "")
    return int(length) if length.isdecimal() else -1


def _part(chunks: Iterator[bytes], start: int, stop: int) -> Iterator[bytes]:
    """The requested range out of the whole file, for a server that ignores ranges."""
    position = 0
    for chunk in chunks:
        wanted = chunk[max(0, start - position) : max(0, stop - position)]
        position += len(chunk)
        if wanted:
            yield wanted
        if position >= stop:
            return


@contextmanager
def client_errors(repo: str) -> Iterator[None]:
    """Turn what the client raises in a block into our own errors; errors in `MISSING` pass unchanged."""
    try:
        yield
    except GatedRepoError as error:
        fix = f"ask for access at https://huggingface.co/{repo}, then log in (hf auth login) or set HF_TOKEN"
        raise HubError(f"{repo} is gated, and you have no access", fix=fix) from error
    except MISSING:
        raise
    except HFValidationError as error:
        raise UsageError("the Hugging Face Hub takes no such name", found=_first_line(error)) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo} cannot be reached in offline mode", fix="unset HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        raise _http_error(repo, error) from error
    except (_TRANSPORT, OSError, RuntimeError) as error:  # a failed upload comes as a RuntimeError around its cause
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
        if cause is not None:
            raise _http_error(repo, cause) from error
        if "/xet-" in str(error) and "404" in str(error):
            fix = "set HF_HUB_DISABLE_XET=1"
            raise HubError(f"the hub of {repo} has no Xet storage, which the client wants to use", fix=fix) from error
        fix = "check the network"
        raise UnreachableError(f"the Hugging Face Hub failed at {repo}", found=_first_line(error), fix=fix) from error


def _http_error(repo: str, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code
    problem = f"{status} {error.server_message or _first_line(error)}"[:300]
    if status in _PASSING:
        return UnreachableError(f"the Hugging Face Hub failed at {repo}", found=problem, fix="try again later")
    if status in (401, 403):
        fix = "log in (hf auth login) or set HF_TOKEN, with a token that may write if you publish"
        return HubError(f"you have no permission for this at {repo}", found=problem, fix=fix)
    return HubError(f"the Hugging Face Hub refused at {repo}", found=problem)


def no_repository(repo: str) -> NotFoundError:
    """The error for a repository that does not exist, or that the caller may not see."""
    return NotFoundError(f"there is no {repo} on the Hugging Face Hub", fix=LOGIN)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
