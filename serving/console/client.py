"""The console's client of the endpoint's own routes: with the user's key and address, through the middleware."""

from __future__ import annotations

import copy
from typing import Any

import gradio as gr
import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.auth.authenticator import authorization
from sparsehub.errors import RequestError


class AnswerError(RequestError):
    """The endpoint answered with an error; this is its message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class EndpointClient:
    """Everything that the console knows or does comes from here, so it can do what its user's key can, and no more."""

    def __init__(self, endpoint: ASGIApp, request: gr.Request):
        assert request.request is not None, "Gradio gives every event its request"
        self._endpoint, self._scope = endpoint, request.request.scope

    async def get(self, path: str) -> Any:
        """The answer's JSON; raises `AnswerError`."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._ask("POST", path, body)

    async def tasks(self) -> list[dict[str, Any]]:
        """The state of every task that the user may ask, as `GET /v1/tasks` tells it."""
        found: list[dict[str, Any]] = (await self.get("/v1/tasks"))["data"]
        return found

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        given = authorization(self._scope["path"], dict(self._scope["headers"]))
        sent = dict(self._scope["headers"])
        headers = {"host": sent.get(b"host", b"localhost").decode("latin-1")}
        if given is not None:
            headers["authorization"] = given
        transport = httpx.ASGITransport(self._from_here, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            response = await client.request(method, path, json=body, headers=headers)
        if response.status_code >= 400:
            raise AnswerError(response.status_code, _message(response))
        return response.json()

    async def _from_here(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint, which is to see the two ends of the user's own connection."""
        ends = {end: copy.copy(self._scope.get(end)) for end in ("client", "server")}
        await self._endpoint({**scope, **ends}, receive, send)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the endpoint answered {response.status_code}"
