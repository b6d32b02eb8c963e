"""HuggingFaceBackend: packages on the Hugging Face Hub: one repository a task, one commit a publish, then the tags.

<owner>/<name>              the repository of a task; `main` shows the package that was published last
tag sha256-<hex>            the commit that holds the package of that digest
tag <version>               the same commit: written last, once, so a version is whole or absent
branch sparsehub            channels/<channel>.json, moved by compare-and-swap on the branch's commit, and
                            signatures/<hex>.sig of packages that were signed after they were published
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from sparsehub.errors import FormatError, HubError, IntegrityError, UnreachableError, UsageError
from sparsehub.files import MAX_PACKAGE_JSON_BYTES, sha256_bytes
from sparsehub.hub.backend import Upload, version_taken
from sparsehub.hub.channels import MAX_CHANNEL_BYTES
from sparsehub.hub.documents import Token
from sparsehub.hub.hf_client import LOGIN, MISSING, Client, client_errors, no_repository, without_bars
from sparsehub.hub.hf_commit import LIBRARY, additions, check_card
from sparsehub.hub.retry import wait_before
from sparsehub.hub.transfer import Meter, damaged

if TYPE_CHECKING:
    from sparsehub.package.manifest import FileRecord

SIDE_BRANCH = "sparsehub"
MAX_SIGNATURE_BYTES = 1 << 20
ATTEMPTS = 12  # of a commit that others come before
PATIENCE = 5.0  # seconds after which another publisher's commit without a tag is taken for abandoned
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?")
_DIGEST_TAG = re.compile(r"sha256-[0-9a-f]{64}")
_KEPT = ".gitattributes"  # the one file of a repository that is not ours


class HuggingFaceBackend:
    """A `HubBackend` under one user or organisation. private: of new repositories, None for the account's default."""

    requests = 8
    hint: str | None = LOGIN

    def __init__(self, owner: str, *, private: bool | None = None, api: HfApi | None = None):
        if not _OWNER.fullmatch(owner):
            raise UsageError(
                "not a name on the Hugging Face Hub", found=owner[:200], expected="hf://user-or-organisation"
            )
        self.where, self._owner, self._private = f"hf://{owner}", owner, private
        self._client = Client(api or HfApi(library_name=LIBRARY))
        self._commits: dict[str, str] = {}  # digest -> commit, which never changes

    def names(self) -> list[str]:
        with client_errors(self._owner):
            found = list(self._client.api.list_models(author=self._owner, filter=LIBRARY))
        return sorted(model.id.partition("/")[2] for model in found if model.id.startswith(f"{self._owner}/"))

    def versions(self, name: str) -> list[str]:
        refs = self._client.refs(self._repo(name))
        return sorted(tag for tag in (refs[1] if refs else ()) if not _DIGEST_TAG.fullmatch(tag))

    def read_tag(self, name: str, version: str) -> str | None:
        refs = self._client.refs(self._repo(name))
        tags = refs[1] if refs else {}
        if version not in tags:
            return None
        digests = [_digest_of(tag) for tag, commit in tags.items() if commit == tags[version] and _digest_of(tag)]
        if len(digests) != 1:
            fix = "remove it from the repository and publish the package again"
            found = ", ".join(map(str, digests)) or "none"
            raise IntegrityError(f"the tag {name}@{version} must point at one package", found=found, fix=fix)
        return digests[0]

    def create_tag(self, name: str, version: str, digest: str) -> bool:
        commit = self._commit(name, digest)
        if commit is None:
            raise HubError(f"{name}@{digest} vanished from the hub while it was tagged", fix="publish it again")
        return self._tag(self._repo(name), version, commit)

    def read_manifest(self, name: str, digest: str) -> bytes | None:
        commit = self._commit(name, digest)
        return None if commit is None else self._manifest_at(name, commit)

    def open_file(
        self, name: str, digest: str, file: str, record: FileRecord, start: int, stop: int
    ) -> Iterator[bytes]:
        commit = self._commit(name, digest)
        if commit is None:
            raise no_repository(self._repo(name))
        try:
            size, chunks = self._client.stream(self._repo(name), commit, file, start, stop)
        except MISSING as error:
            fix = "publish the package again"
            raise IntegrityError(f"the hub has lost {file}", expected=record.sha256, fix=fix) from error
        if size not in (-1, record.size):
            raise damaged(file, f"{size} bytes", f"{record.size} bytes")
        return chunks

    def upload(self, upload: Upload, meter: Meter) -> None:
        manifest = upload.manifest
        if self._commit(manifest.name, manifest.digest) is None:
            check_card(upload)
            commit = self._commit_package(upload)
            self._tag(self._repo(manifest.name), digest_tag(manifest.digest), commit)
        meter.add(upload.size)

    def read_signature(self, name: str, digest: str) -> bytes | None:
        commit = self._commit(name, digest)
        if commit is None:
            return None
        found = self._client.read(self._repo(name), commit, "model.sig", MAX_SIGNATURE_BYTES)
        if found is None:
            found = self._side_file(name, _signature_path(digest), MAX_SIGNATURE_BYTES)[0]
        return found

    def write_signature(self, name: str, digest: str, data: bytes) -> bool:
        for attempt in range(ATTEMPTS):
            if self.read_signature(name, digest) is not None:
                return False
            head = self._side_head(name) or self._make_side_branch(name)
            if self._side_write(name, _signature_path(digest), data, head):
                return True
            wait_before(min(attempt, 2))
        raise HubError(f"others keep writing to {self._repo(name)}", fix="try again")

    def channels(self, name: str) -> list[str]:
        head, repo = self._side_head(name), self._repo(name)
        if head is None:
            return []
        try:
            tree = self._tree(repo, head, "channels")
        except MISSING:
            return []
        names = (path.removeprefix("channels/") for path in tree)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def read_channel(self, name: str, channel: str) -> tuple[bytes, Token] | None:
        data, head = self._side_file(name, f"channels/{channel}.json", MAX_CHANNEL_BYTES)
        return None if data is None else (data, head)

    def write_channel(self, name: str, channel: str, data: bytes, token: Token | None) -> bool:
        path = f"channels/{channel}.json"
        if token is not None:
            return self._side_write(name, path, data, token)
        found, head = self._side_file(name, path, MAX_CHANNEL_BYTES)
        return found is None and self._side_write(name, path, data, head or self._make_side_branch(name))

    def _repo(self, name: str) -> str:
        return f"{self._owner}/{name}"

    def _commit(self, name: str, digest: str) -> str | None:
        """The commit that holds a package; None where there is none."""
        if digest not in self._commits:
            refs = self._client.refs(self._repo(name))
            commit = refs[1].get(digest_tag(digest)) if refs else None
            if commit is None:
                return None
            self._commits[digest] = commit
        return self._commits[digest]

    def _manifest_at(self, name: str, commit: str) -> bytes | None:
        return self._client.read(self._repo(name), commit, "sparsehub.json", MAX_PACKAGE_JSON_BYTES)

    def _tag(self, repo: str, tag: str, commit: str) -> bool:
        """Make a tag; False where there is one."""
        try:
            self._client.call(repo, lambda: self._client.api.create_tag(repo, tag=tag, revision=commit))
        except HubError as error:
            if _status(error) == 409:
                return False
            raise
        return True

    def _commit_package(self, upload: Upload) -> str:
        """Put the package on `main`, on top of what was looked at; the commit that holds it."""
        manifest, repo = upload.manifest, self._repo(upload.manifest.name)
        failure = HubError(f"others keep writing to {repo}", fix="try again")
        for attempt in range(ATTEMPTS):
            head = self._main(repo)
            self._wait_for_publisher(upload, head)
            operations = [*additions(upload), *self._deletions(repo, head, upload)]
            title = f"{manifest.name} {manifest.version}"
            try:
                commit = self._try_commit(repo, operations, title, head, "main")
                data = None if commit is None else self._manifest_at(manifest.name, commit)
                if commit is not None and data is not None and sha256_bytes(data) == manifest.digest:
                    return commit
            except UnreachableError as error:
                failure = error
            wait_before(min(attempt, 2))
        raise failure

    def _main(self, repo: str) -> str:
        """The head of `main`; the repository is made where there is none."""
        refs, api = self._client.refs(repo), self._client.api
        if refs is None:
            self._client.call(repo, lambda: api.create_repo(repo, private=self._private, exist_ok=True))
            refs = self._client.refs(repo)
        if refs is None or "main" not in refs[0]:
            raise HubError(f"{repo} has no branch `main`", fix="delete the repository and publish again")
        return refs[0]["main"]

    def _wait_for_publisher(self, upload: Upload, head: str) -> None:
        """Wait for another publisher of the same version that has committed and not tagged; it may have died."""
        from sparsehub.package.manifest import parse_manifest

        manifest, give_up = upload.manifest, time.monotonic() + PATIENCE
        while (there := self.read_tag(manifest.name, manifest.version)) is None:
            data = self._manifest_at(manifest.name, head)
            try:
                found = None if data is None else parse_manifest(data)
            except FormatError:
                return
            if found is None or found.version != manifest.version or found.digest == manifest.digest:
                return
            if time.monotonic() > give_up:
                return
            wait_before(0)
        if there != manifest.digest:
            raise version_taken(manifest.name, manifest.version, there, manifest.digest)

    def _tree(self, repo: str, commit: str, folder: str | None = None) -> list[str]:
        """The paths right under a folder of a commit."""
        with client_errors(repo):
            return [item.path for item in self._client.api.list_repo_tree(repo, folder, revision=commit)]

    def _deletions(self, repo: str, head: str, upload: Upload) -> list[CommitOperationDelete]:
        """The files of the package published before that this one does not have."""
        from sparsehub.package.manifest import is_allowed_file

        tree = self._tree(repo, head)
        kept = {*upload.files, "sparsehub.json", _KEPT, *(["model.sig"] if upload.signature else [])}
        return [CommitOperationDelete(path) for path in tree if path not in kept and is_allowed_file(path)]

    def _try_commit(self, repo: str, operations: list[Any], title: str, parent: str, branch: str) -> str | None:
        """Make a commit; None where the branch has moved on. After `UnreachableError` it may exist or not."""
        try:
            with client_errors(repo), without_bars():
                info = self._client.api.create_commit(
                    repo, operations, commit_message=title, revision=branch, parent_commit=parent
                )
        except HubError as error:
            if _status(error) in (409, 412):
                return None
            raise
        except ValueError as error:
            raise HubError(f"{repo} takes no such commit", found=str(error)[:300]) from error
        return str(info.oid)

    def _side_head(self, name: str) -> str | None:
        refs = self._client.refs(self._repo(name))
        return refs[0].get(SIDE_BRANCH) if refs else None

    def _side_file(self, name: str, path: str, limit: int) -> tuple[bytes | None, str | None]:
        """A file of the side branch, and the head at which it was read."""
        head = self._side_head(name)
        return (None if head is None else self._client.read(self._repo(name), head, path, limit)), head

    def _side_write(self, name: str, path: str, data: bytes, parent: str) -> bool:
        operation, repo = CommitOperationAdd(path, data), self._repo(name)
        try:
            return self._try_commit(repo, [operation], f"Move {path}", parent, SIDE_BRANCH) is not None
        except UnreachableError:
            return False  # the caller reads it again

    def _make_side_branch(self, name: str) -> str:
        """Make the branch, from the repository's first commit: it must not hold a package."""
        repo = self._repo(name)
        api = self._client.api
        with client_errors(repo):
            first = api.list_repo_commits(repo)[-1].commit_id
        self._client.call(repo, lambda: api.create_branch(repo, branch=SIDE_BRANCH, revision=first, exist_ok=True))
        head = self._side_head(name)
        if head is None:
            raise HubError(f"{repo} has no branch {SIDE_BRANCH!r}, though it was made", fix="try again")
        return head


def _status(error: HubError) -> int | None:
    """The HTTP status that an error came from."""
    cause = error.__cause__
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


def digest_tag(digest: str) -> str:
    """The tag under which a package is found by its digest."""
    return digest.replace(":", "-")


def _digest_of(tag: str) -> str | None:
    return "sha256:" + tag.removeprefix("sha256-") if _DIGEST_TAG.fullmatch(tag) else None


def _signature_path(digest: str) -> str:
    return f"signatures/{digest.removeprefix('sha256:')}.sig"
