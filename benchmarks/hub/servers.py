"""An S3 and a Hugging Face Hub beside the hub's benchmark: those of the tests, each in a process of its own.

They are filled from inside: ten thousand publishes over HTTP would take an hour, and leave the same objects.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from huggingface_hub import HfApi, constants
from obstore.store import ObjectStore, S3Store

from sparsehub.files import canonical_json
from sparsehub.hub import PackageHub
from sparsehub.hub.huggingface_backend import HuggingFaceBackend, digest_tag

_TOKEN = "hf_writer"


@dataclass(frozen=True)
class Server:
    """A server that runs. address: of its HTTP."""

    address: str
    pipe: Any

    def fill(self, place: str, name: str, manifests: Mapping[str, bytes]) -> None:
        """Put the versions of a task into a place of its own: a prefix of the bucket, or an organisation."""
        self._ask("fill", place, name, dict(manifests))

    @property
    def requests(self) -> int:
        """How many were answered so far; a Hugging Face Hub counts them."""
        return int(self._ask("requests"))

    def _ask(self, *wish: Any) -> Any:
        self.pipe.send(wish)
        return self.pipe.recv()


@contextmanager
def served(kind: str) -> Iterator[Server]:
    """The server of the tests: `s3` or `hf`."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target={"s3": _serve_s3, "hf": _serve_hf}[kind], args=(theirs,), daemon=True)
    process.start()
    try:
        yield Server(ours.recv(), ours)
    finally:
        process.kill()


def bucket(server: Server, prefix: str) -> ObjectStore:
    """A place of its own in the bucket."""
    return S3Store(
        "bucket",
        prefix=prefix,
        endpoint=server.address,
        region="us-east-1",
        access_key_id="key",
        secret_access_key="secret",
        client_options={"allow_http": True},
    )


def hosted_hub(server: Server, owner: str) -> PackageHub:
    """The hub of an organisation on the Hugging Face Hub."""
    constants.HF_HUB_DISABLE_XET = True  # the server has none
    return PackageHub(HuggingFaceBackend(owner, api=HfApi(endpoint=server.address, token=_TOKEN)))


def objects_of(name: str, manifests: Mapping[str, bytes]) -> dict[str, bytes]:
    """What a publish puts into a folder or a bucket, the files of the packages apart: nobody looks at those here."""
    digests = {version: hashlib.sha256(data).hexdigest() for version, data in manifests.items()}
    stored = {f"manifests/sha256/{digests[version]}": data for version, data in manifests.items()}
    tags = {
        f"tags/{name}/{version}": canonical_json({"digest": f"sha256:{digest}"}) for version, digest in digests.items()
    }
    return {**stored, **tags}


def _serve_s3(pipe: Any) -> None:
    from tests.support.hub_servers import s3  # in its own process: this one imports no server

    with s3.served() as address:
        models, core = importlib.import_module("moto.s3.models"), importlib.import_module("moto.core")
        store = models.s3_backends[core.DEFAULT_ACCOUNT_ID]["aws"]

        def fill(place: str, name: str, manifests: dict[str, bytes]) -> None:
            for path, data in objects_of(name, manifests).items():
                store.put_object("bucket", f"{place}/{path}", data)

        _answer(pipe, address, fill=fill)


def _serve_hf(pipe: Any) -> None:
    from tests.support.hub_servers import huggingface

    state = huggingface.State()

    def fill(place: str, name: str, manifests: dict[str, bytes]) -> None:
        repo = state.repos.setdefault(f"{place}/{name}", huggingface.Repo())
        for version, data in manifests.items():
            digest = state.store(data)
            commit = state.commit(repo, "main", {"sparsehub.json": digest})
            repo.tags.update({digest_tag(f"sha256:{digest}"): commit, version: commit})

    with huggingface.served(state) as address:
        _answer(pipe, address, fill=fill, requests=lambda: len(state.requests))


def _answer(pipe: Any, address: str, **known: Any) -> None:
    """Say where the server is, and do what is asked until the process is killed."""
    pipe.send(address)
    while True:
        verb, *arguments = pipe.recv()
        pipe.send(known[verb](*arguments))
