"""What the routes work with: the steps of every request, from what its `model` says to rows that wait for their answer.

resolve (catalogue, access), then in one hop off the event loop: prepare (the task held, the inputs tokenised), limits,
submit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from serving.auth import Authenticator
from serving.catalog.reconciler import Reconciler
from serving.catalog.router import Routed, Router
from serving.request.context import RequestContext, current_request
from serving.request.limits import check_items, check_size, take_items, take_tokens
from serving.request.metrics import Metrics
from serving.settings import Settings
from sparsehub.engine import Engine, Generation, PendingRequest, PreparedRequest, Sampling, TaskInfo
from sparsehub.engine.generation.entrypoint import Prompt
from sparsehub.engine.generation.request import TextListener
from sparsehub.errors import RequestError, UnknownTaskError
from sparsehub.package.task_spec import EMBEDDING
from sparsehub.task_ref import BACKBONE, NAME, parse_model


class TaskInputs(Protocol):
    """What a route asks of a task, where it has to know the task to say so."""

    def rows(self, task: TaskInfo) -> Sequence[Any]:
        """One row per input; raises `RequestError` where the route is not for such a task."""


@dataclass(frozen=True)
class Service:
    """Everything that one endpoint runs; it hangs at `app.state.service`."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    access: Authenticator = field(default_factory=Authenticator)
    router: Router = field(default_factory=Router)
    reconciler: Reconciler | None = None
    started: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    def is_backbone(self, model: str) -> bool:
        """Whether `model` names the plain backbone."""
        return model in (self.settings.backbone, BACKBONE)

    @property
    def embedding_size(self) -> int:
        """Numbers of a vector."""
        return int(self.engine.backbone.config.hidden_size)

    async def info(self, model: str) -> TaskInfo:
        """What a task is; its package may have to be read first. Raises `ForbiddenError` where the task is not the
        caller's, and `UnknownTaskError`."""
        call = current_request()
        routed = self.resolve(call, model)
        assert routed.model is not None  # only the plain backbone has none
        with discreet(call, model):
            info = await run_sync(self.engine.info, routed.model, self.settings.timeout)
        call.served = info
        return info

    async def classify(
        self, model: str, inputs: TaskInputs, truncate: bool | int, *, vectors: bool = False
    ) -> PendingRequest[Any]:
        """Submit what a route asks of a task's head; raises what `info` and `Engine.classify` raise, and
        `RateLimitError`. vectors: whether an embedding, which has no answers but vectors, may give those."""
        call = current_request()
        self.check_head(call, model)
        routed = self.resolve(call, model)
        with discreet(call, model):
            return await run_sync(self._classify, call, routed, inputs, truncate, vectors)

    async def embed(self, model: str | None, texts: Sequence[Any], truncate: bool | int) -> PendingRequest[list[float]]:
        """Submit texts of which vectors are wanted. model: None for the plain backbone. Raises as `classify` does."""
        call = current_request()
        check_items(self.settings, len(texts))
        routed = self.resolve(call, model)
        take_items(routed, len(texts))
        with discreet(call, model or BACKBONE):
            return await run_sync(self._embed, call, routed, texts, truncate)

    async def generate(
        self, model: str | None, prompts: Sequence[Prompt], samplings: Sequence[Sampling], listener: TextListener | None
    ) -> list[Generation]:
        """Submit prompts, each with its sampling; raises as `classify` does. listener: hears the texts as they come."""
        call = current_request()
        check_items(self.settings, len(prompts))
        routed = self.resolve(call, model)
        take_items(routed, len(prompts))
        with discreet(call, model or BACKBONE):
            return await run_sync(self._generate, call, routed, prompts, samplings, listener)

    def finish(self, call: RequestContext) -> None:
        """The answer is sent, or will never be: nothing is held for it any more."""
        for routed in call.routed.values():
            self.router.release(routed)

    def check_head(self, call: RequestContext, model: str) -> None:
        """Raises `RequestError` where the plain backbone is asked for what only a task's head gives. A backbone of a
        name that a task may have too, as that of a folder, means the task here."""
        if model == BACKBONE or (self.is_backbone(model) and not NAME.fullmatch(model)):
            call.caller.check_task(BACKBONE)
            fix = "name a task; of the backbone itself /v1/embeddings gives vectors"
            raise RequestError("the plain backbone has no head", found=model, expected="a task", fix=fix)

    def resolve(self, call: RequestContext, model: str | None) -> Routed:
        """What `model` means for all of this request; None is the plain backbone. Raises as `info` does."""
        if model is None:
            call.caller.check_task(BACKBONE)
            return Routed(None)
        if model not in call.routed:
            asked = parse_model(model)
            for name in asked.names:
                call.caller.check_task(name)
            with discreet(call, model):
                call.routed[model] = self.router.hold(asked, call.sticky)
        return call.routed[model]

    # in a worker thread: tokenising takes a while for many rows

    def _classify(
        self, call: RequestContext, routed: Routed, inputs: TaskInputs, truncate: bool | int, vectors: bool
    ) -> PendingRequest[Any]:
        assert routed.model is not None  # only the plain backbone has none
        with self.engine.acquire(routed.model, self.settings.timeout) as acquired:
            call.served = acquired.info
            rows = inputs.rows(acquired.info)
            check_items(self.settings, len(rows))
            take_items(routed, len(rows))
            sent = check_size(self.settings, rows)
            embed, timeout = vectors and acquired.info.spec.kind == EMBEDDING, self.settings.timeout
            with self.engine.prepare(acquired, rows, embed=embed, truncate=truncate, timeout=timeout) as prepared:
                return self._submit(call, routed, prepared, sent)

    def _embed(
        self, call: RequestContext, routed: Routed, texts: Sequence[Any], truncate: bool | int
    ) -> PendingRequest[list[float]]:
        timeout, sent = self.settings.timeout, check_size(self.settings, texts)
        with self.engine.prepare(routed.model, texts, embed=True, truncate=truncate, timeout=timeout) as prepared:
            return self._submit(call, routed, prepared, sent)

    def _generate(
        self,
        call: RequestContext,
        routed: Routed,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        listener: TextListener | None,
    ) -> list[Generation]:
        check_size(self.settings, prompts)
        with self.engine.prepare_generation(routed.model, prompts, samplings, self.settings.timeout) as prepared:
            take_tokens(self.settings, call, routed, prepared.tokens)
            prepared.tenant = call.tenant
            generations = self.engine.submit_generation(prepared, listener)
        call.count(prepared.task, len(generations), sum(len(generation.prompt) for generation in generations))
        return generations

    def _submit(
        self, call: RequestContext, routed: Routed, prepared: PreparedRequest, sent: int
    ) -> PendingRequest[Any]:
        """sent: tokens that are charged at least, even where less is left after a cut."""
        take_tokens(self.settings, call, routed, max(prepared.tokens, sent))
        prepared.tenant = call.tenant
        pending = self.engine.submit(prepared)
        call.count(pending.task, len(pending.futures), pending.tokens)
        return pending


async def _service(request: Request) -> Service:  # a coroutine, or FastAPI would hop to a thread for it
    service: Service = request.app.state.service
    return service


RunningService = Annotated[Service, Depends(_service)]
"""How a route declares that it works with the service."""


@contextmanager
def discreet(call: RequestContext, model: str) -> Iterator[None]:
    """An unknown task's error names one like it: not to a caller who is not to know all of them."""
    try:
        yield
    except UnknownTaskError as error:
        if call.caller.sees_all:
            raise
        raise UnknownTaskError(f"unknown task {model[:200]!r}") from error
