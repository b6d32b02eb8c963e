"""What the page's parts share: the way to the endpoint, and what is inside its packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TypeVar

import anyio
import gradio as gr
from starlette.types import ASGIApp

from serving.auth import Authenticator, Caller
from serving.auth.authenticator import authorization
from serving.auth.pages import place
from serving.console.client import EndpointClient
from serving.console.package_views import Packages
from sparsehub.errors import SparsehubError

T = TypeVar("T")


@dataclass(frozen=True)
class ConsoleContext:
    """What the tabs of the page work with."""

    endpoint: ASGIApp  # with its middleware, as every client reaches it
    access: Authenticator
    packages: Packages
    backbone: str  # its id
    device: str  # that its tasks run on

    def asker(self, request: gr.Request) -> EndpointClient:
        return EndpointClient(self.endpoint, request)

    def caller(self, request: gr.Request) -> Caller:
        """Who looks; raises `UnauthenticatedError`."""
        assert request.request is not None, "Gradio gives every event its request"
        scope = request.request.scope
        client, server = scope.get("client"), scope.get("server")
        given = authorization(scope["path"], dict(scope["headers"]))
        return self.access.identify(given, client and client[0], server and server[0])

    def url(self, request: gr.Request) -> str:
        """The endpoint's address, as the user's browser knows it."""
        assert request.request is not None, "Gradio gives every event its request"
        scope = request.request.scope
        host = dict(scope["headers"]).get(b"host", b"localhost").decode("latin-1")
        return f"{scope.get('scheme', 'http')}://{host}{place(scope, '')}"

    async def inside(self, request: gr.Request, references: list[str], look: Callable[..., T]) -> T:
        """What `look` finds in the packages of these tasks, by their digests; only of tasks that the user may ask."""
        digests = {task["id"]: task["digest"] for task in await self.asker(request).tasks()}
        unknown = [reference for reference in references if reference not in digests]
        if unknown or not references:
            raise gr.Error(
                "choose a task" if not references else f"no task {escape(unknown[0][:200])} is served to you"
            )
        try:
            return await anyio.to_thread.run_sync(look, *(digests[reference] for reference in references))
        except SparsehubError as error:
            raise shown(error) from error


def shown(error: SparsehubError) -> gr.Error:
    """An error as the page shows it: a note at the side that stays until it is read. Gradio takes it for HTML, and what
    it cites may be of a package's author."""
    return gr.Error(escape(str(error), quote=False), duration=15, title="Refused", print_exception=False)
