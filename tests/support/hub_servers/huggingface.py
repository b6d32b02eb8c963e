"""A small Hugging Face Hub: enough of its protocol for the real client, over real HTTP, in the memory of this process.

Repositories with commits, branches, tags, large files, tokens, private and gated access; and faults that tests ask for.
Whatever the server stores can be spoilt through `State.blobs`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LARGE = 1000  # bytes from which a file goes the way of large ones


@dataclass
class Commit:
    """A commit: paths to the sha256 of their bytes, and the commit before."""

    files: dict[str, str]
    parent: str | None


@dataclass
class Repo:
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False


@dataclass
class State:
    """Everything the server knows. tokens: of users who may do everything; requests: "METHOD path", in order."""

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=lambda: {"hf_writer"})
    requests: list[str] = field(default_factory=list)
    fault: Callable[[str, str], Response | None] = lambda method, path: None
    cdn_host: str = ""  # where large files come from; the server itself by default
    cdn_tokens: list[str] = field(default_factory=list)  # Authorization headers that arrived there
    ignores_ranges: bool = False
    numbers: Iterator[int] = field(default_factory=itertools.count)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs.setdefault(digest, data)
        return digest

    def commit(self, repo: Repo, branch: str, files: dict[str, str]) -> str:
        oid = hashlib.sha1(str(next(self.numbers)).encode()).hexdigest()
        repo.commits[oid] = Commit(files, repo.branches.get(branch))
        repo.branches[branch] = oid
        return oid


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


def application(state: State) -> Starlette:
    def route(path: str, handler: Callable[[Call], Any], *methods: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return _answer(state, handler, request, await request.body())

        return Route(path, endpoint, methods=list(methods))

    model = "/api/models/{owner}/{name}"
    return Starlette(
        routes=[
            route("/api/repos/create", create_repo, "POST"),
            route("/api/validate-yaml", validate_yaml, "POST"),
            route("/api/models", list_models, "GET"),
            route(model + "/refs", refs, "GET"),
            route(model + "/preupload/{rev}", preupload, "POST"),
            route(model + "/commit/{rev}", commit, "POST"),
            route(model + "/commits/{rev}", commits, "GET"),
            route(model + "/tag/{rev}", tag, "POST"),
            route(model + "/branch/{branch}", branch, "POST"),
            route(model + "/tree/{rev}", tree, "GET"),
            route(model + "/tree/{rev}/{path:path}", tree, "GET"),
            route(model + "/revision/{rev}", info, "GET"),
            route(model, info, "GET"),
            route("/{owner}/{name}.git/info/lfs/objects/batch", lfs_batch, "POST"),
            route("/lfs/{oid}", lfs_upload, "PUT"),
            route("/verify", lambda call: {}, "POST"),
            route("/{owner}/{name}/resolve/{rev}/{path:path}", resolve, "GET", "HEAD"),
            route("/cdn/{oid}", cdn, "GET"),
        ]
    )


def _answer(state: State, handler: Callable[[Call], Any], request: Request, body: bytes) -> Response:
    """What the state's fault says, or the handler, or how it refused."""
    state.requests.append(f"{request.method} {request.url.path}")
    with state.lock:
        if (fault := state.fault(request.method, request.url.path)) is not None:
            return fault
        try:
            found = handler(Call(state, request, body))
        except Refused as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            headers = {"X-Error-Message": str(refused), **code}
            return JSONResponse({"error": str(refused)}, refused.status, headers)
    return found if isinstance(found, Response) else JSONResponse(found)


class Call:
    """One request, and what it may see."""

    def __init__(self, state: State, request: Request, body: bytes):
        self.state, self.request, self.body = state, request, body
        self.path = request.path_params

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def root(self) -> str:
        """The address that the client used."""
        return str(self.request.base_url).rstrip("/")

    @property
    def known(self) -> bool:
        scheme, _, token = self.request.headers.get("authorization", "").partition(" ")
        return scheme == "Bearer" and token in self.state.tokens

    def repo(self, write: bool = False) -> Repo:
        found = self.state.repos.get(f"{self.path['owner']}/{self.path['name']}")
        if found is None or (found.private and not self.known):
            raise Refused(404 if self.known else 401, "Repository not found", "RepoNotFound")
        if write and not self.known:
            raise Refused(403, "Forbidden: pass a token that may write")
        return found

    def commit_of(self, repo: Repo) -> str:
        revision = unquote(self.path.get("rev", "main"))
        oid = repo.branches.get(revision) or repo.tags.get(revision) or revision
        if oid not in repo.commits:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        return oid


def create_repo(call: Call) -> Any:
    if not call.known:
        raise Refused(401, "Unauthorized")
    body = call.json
    name = f"{body['organization']}/{body['name']}"
    if name in call.state.repos:
        return JSONResponse({"error": "You already created this model repo", "url": f"{call.root}/{name}"}, 409)
    repo = Repo(private=body.get("visibility") == "private" or bool(body.get("private")))
    call.state.repos[name] = repo
    call.state.commit(repo, "main", {".gitattributes": call.state.store(b"*.safetensors filter=lfs\n")})
    return {"url": f"{call.root}/{name}", "name": name}


def validate_yaml(call: Call) -> Any:
    _, _, rest = call.json["content"].partition("---\n")
    try:
        yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return {"errors": [], "warnings": []}


def list_models(call: Call) -> Any:
    wanted, author = call.request.query_params.getlist("filter"), call.request.query_params.get("author")
    return [
        {"id": name, "_id": name, "private": repo.private, "tags": sorted(tags)}
        for name, repo in call.state.repos.items()
        if (not repo.private or call.known)
        and (author is None or name.startswith(f"{author}/"))
        and set(wanted) <= (tags := tags_of(call.state, repo))
    ]


def tags_of(state: State, repo: Repo) -> set[str]:
    """What the Hub makes of the head of a card."""
    digest = repo.commits[repo.branches["main"]].files.get("README.md")
    if digest is None:
        return set()
    text = state.blobs[digest].decode().partition("---\n")[2].partition("\n---")[0]
    table = yaml.safe_load(text) or {}
    tags = {*table.get("tags", ()), table.get("library_name"), table.get("pipeline_tag")}
    if "base_model" in table:
        tags |= {
            f"base_model:{table['base_model']}",
            f"base_model:{table['base_model_relation']}:{table['base_model']}",
        }
    tags |= {f"dataset:{dataset}" for dataset in table.get("datasets", ())}
    return {tag for tag in tags if tag}


def refs(call: Call) -> Any:
    repo = call.repo()

    def shown(kind: str, found: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in found.items()]

    return {"branches": shown("heads", repo.branches), "tags": shown("tags", repo.tags), "converts": []}


def preupload(call: Call) -> Any:
    repo = call.repo(write=True)
    files = repo.commits[call.commit_of(repo)].files

    def answer(file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] >= LARGE
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": _oid(call.state, files.get(file["path"]), large),
        }

    return {"files": [answer(file) for file in call.json["files"]]}


def _oid(state: State, digest: str | None, large: bool) -> str | None:
    if digest is None or large:
        return digest
    data = state.blobs[digest]
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit(call: Call) -> Any:
    repo, name = call.repo(write=True), unquote(call.path["rev"])
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = lines[0]["value"]
    if name not in repo.branches:
        raise Refused(404, "Invalid rev id", "RevisionNotFound")
    if header.get("parentCommit") not in (None, repo.branches[name]):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.commits[repo.branches[name]].files)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = call.state.store(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if value["oid"] not in call.state.blobs:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['oid']}")
            files[value["path"]] = value["oid"]
        elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
    oid = call.state.commit(repo, name, files)
    url = f"{call.root}/{call.path['owner']}/{call.path['name']}/commit/{oid}"
    return {"commitUrl": url, "commitOid": oid, "success": True}


def commits(call: Call) -> Any:
    repo = call.repo()
    oid: str | None = call.commit_of(repo)
    found = []
    while oid is not None:
        found.append({"id": oid, "title": "", "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []})
        oid = repo.commits[oid].parent
    return JSONResponse(found, headers={"X-Total-Count": str(len(found))})


def tag(call: Call) -> Any:
    repo = call.repo(write=True)
    oid, name = call.commit_of(repo), call.json["tag"]
    if name in repo.tags:
        raise Refused(409, "Tag reference exists already")
    repo.tags[name] = oid
    return {}


def branch(call: Call) -> Any:
    repo, name = call.repo(write=True), unquote(call.path["branch"])
    if name in repo.branches:
        raise Refused(409, "Reference already exists")
    repo.branches[name] = call.json["startingPoint"]
    return {}


def tree(call: Call) -> Any:
    repo, folder = call.repo(), call.path.get("path", "")
    files = repo.commits[call.commit_of(repo)].files
    prefix = f"{folder}/" if folder else ""
    inside = {path: digest for path, digest in files.items() if path.startswith(prefix)}
    if folder and not inside:
        raise Refused(404, "Entry not found", "EntryNotFound")
    folders = {path[len(prefix) :].partition("/")[0] for path in inside if "/" in path[len(prefix) :]}
    shown = [{"type": "directory", "path": prefix + name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
    for path, digest in inside.items():
        if "/" not in path[len(prefix) :]:
            shown.append({"type": "file", "path": path, "oid": digest[:40], "size": len(call.state.blobs[digest])})
    return shown


def info(call: Call) -> Any:
    repo = call.repo()
    oid = call.commit_of(repo)
    name = f"{call.path['owner']}/{call.path['name']}"
    siblings = [{"rfilename": path} for path in repo.commits[oid].files]
    return {"id": name, "_id": name, "sha": oid, "private": repo.private, "tags": [], "siblings": siblings}


def lfs_batch(call: Call) -> Any:
    call.repo(write=True)

    def answer(wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in call.state.blobs:
            return wanted
        upload = {"href": f"{call.root}/lfs/{wanted['oid']}"}
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{call.root}/verify"}}}

    return JSONResponse(
        {"transfer": "basic", "objects": [answer(wanted) for wanted in call.json["objects"]]},
        media_type="application/vnd.git-lfs+json",
    )


def lfs_upload(call: Call) -> Any:
    if call.state.store(call.body) != call.path["oid"]:
        raise Refused(400, "the content is not what its name says")
    return Response()


def resolve(call: Call) -> Any:
    repo = call.repo()
    if repo.gated and not call.known:
        raise Refused(403, "Access to model is restricted", "GatedRepo")
    oid = call.commit_of(repo)
    digest = repo.commits[oid].files.get(call.path["path"])
    if digest is None:
        raise Refused(404, "Entry not found", "EntryNotFound")
    headers = {"X-Repo-Commit": oid, "ETag": f'"{digest}"', "X-Linked-Size": str(len(call.state.blobs[digest]))}
    if len(call.state.blobs[digest]) >= LARGE:  # large files come from somewhere else, as they do there
        return Response(status_code=302, headers={**headers, "Location": f"{call.state.cdn_host}/cdn/{digest}"})
    return bytes_of(call, digest, headers)


def cdn(call: Call) -> Any:
    call.state.cdn_tokens.append(call.request.headers.get("authorization", ""))
    return bytes_of(call, call.path["oid"], {})


def bytes_of(call: Call, digest: str, headers: dict[str, str]) -> Response:
    data, wanted = call.state.blobs[digest], call.request.headers.get("range", "")
    if not wanted or call.state.ignores_ranges:
        return Response(data, headers=headers)
    start, _, last = wanted.removeprefix("bytes=").partition("-")
    begin, end = int(start), min(int(last or len(data)), len(data) - 1)
    if begin >= len(data):
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers = {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"}
    return Response(data[begin : end + 1], 206, headers)


@contextmanager
def served(state: State) -> Iterator[str]:
    """The server in a thread of this process; gives its address."""
    config = uvicorn.Config(
        application(state), host="127.0.0.1", port=0, http="httptools", log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
