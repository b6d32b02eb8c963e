"""From the location of a hub to its backend: a folder, a bucket, or a name on the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from sparsehub.errors import UsageError
from sparsehub.hub.backend import HubBackend

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
BUCKETS = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}  # and what the cloud's environment variables begin with
FORMS = "a folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or hf://organisation"
# A request moves a few megabytes at most, so two minutes are enough on a slow line. One that receives nothing for ten
# seconds is given up, since requests of an endpoint may wait for it.
_TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "10s", "timeout": "120s"}
_RETRIES = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=8), "base": 2},
}


def open_backend(location: str | Path, private: bool | None = None) -> HubBackend:
    """The backend at a location; nothing is asked of it yet. Raises `UsageError`."""
    if isinstance(location, str) and not location.strip():
        raise UsageError("the hub's location is empty", expected=FORMS)
    if isinstance(location, Path) or not _SCHEME.match(location):
        _refuse_private(location, private)
        return folder_backend(Path(location).expanduser().absolute())
    url = urlsplit(location)
    if url.query or url.fragment or "@" in url.netloc:
        fix = "credentials come from the environment or from the client's own login, never from the location"
        raise UsageError("a hub's location is a plain path", found=location[:200], expected=FORMS, fix=fix)
    if url.scheme == "hf":
        from sparsehub.hub.huggingface_backend import HuggingFaceBackend

        return HuggingFaceBackend(f"{url.netloc}{url.path}".rstrip("/"), private=private)
    _refuse_private(location, private)
    if url.scheme == "file":
        if url.netloc not in ("", "localhost") or not url.path:
            raise UsageError("not the URL of a folder here", found=location[:200], expected="file:///path/to/folder")
        return folder_backend(Path(unquote(url.path)))
    if url.scheme not in BUCKETS:
        raise UsageError("packages cannot live there", found=location[:200], expected=FORMS)
    return _bucket_backend(location, url)


def folder_backend(root: Path) -> HubBackend:
    """A hub in a folder, which need not exist yet."""
    from sparsehub.hub.blob_store_backend import BlobStoreBackend
    from sparsehub.hub.folder_blob_store import FolderBlobStore  # lazy: sparsehub imports without obstore

    if root.exists() and not root.is_dir():
        raise UsageError("a hub is a folder", found=f"{root}, which is a file")
    return BlobStoreBackend(FolderBlobStore(root))


def _bucket_backend(location: str, url: SplitResult) -> HubBackend:
    from sparsehub.hub.blob_store import BlobStore
    from sparsehub.hub.blob_store_backend import BlobStoreBackend

    if not url.netloc:
        raise UsageError("the location names no bucket", found=location, expected=f"{url.scheme}://bucket/prefix")
    try:
        store = _store(location.rstrip("/"), url.scheme)
    except Exception as error:  # obstore and the cloud's own login raise anything for a wrong configuration
        problem = str(error).partition("\n")[0][:300]
        fix = "set the cloud's usual environment variables, such as AWS_REGION or AZURE_STORAGE_ACCOUNT_NAME"
        raise UsageError(f"{location} cannot be opened", found=problem, fix=fix) from error
    return BlobStoreBackend(BlobStore(lambda: store, location))


def _store(location: str, scheme: str) -> ObjectStore:
    from obstore.store import from_url

    plain = os.environ.get(f"{BUCKETS[scheme]}_ALLOW_HTTP", "").lower() in ("1", "true")  # a store of one's own
    options: dict[str, Any] = {"client_options": {**_TIMEOUTS, "allow_http": plain}, "retry_config": _RETRIES}
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" not in os.environ and importlib.util.find_spec("boto3") is not None:
        import boto3

        session = boto3.Session()
        if session.get_credentials() is not None:  # a profile, a login, a role: what obstore does not look for itself
            from obstore.auth.boto3 import Boto3CredentialProvider

            options["credential_provider"] = Boto3CredentialProvider(session)
    return from_url(location, **options)


def _refuse_private(location: str | Path, private: bool | None) -> None:
    if private is not None:
        raise UsageError("only the Hugging Face Hub knows private tasks", found=str(location), expected="hf://name")
