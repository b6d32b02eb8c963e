"""Which tasks a request means by a list or a pattern, and what they are; `many_tasks.py` asks them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

from anyio.to_thread import run_sync

from serving.protocol.request_model import MOST_CHARACTERS, MOST_TASKS
from serving.request.context import RequestContext, current_request
from serving.request.service import Service, discreet
from sparsehub.engine import Task, TaskInfo
from sparsehub.engine.many_tasks import unreadable
from sparsehub.errors import CancelledError, RequestError, UnknownTaskError
from sparsehub.task_ref import ModelRef, TaskRef, is_composed, is_pattern, parse_model

MOST_COMPOSED = 64  # compositions in one list: each is made of the packages of its terms, which are read for it


def several(service: Service, model: str | list[str]) -> list[str]:
    """The tasks that a list or a pattern means, at most `MOST_TASKS`. Raises `UnknownTaskError` for a pattern that fits
    none of the caller's tasks, and `RequestError`."""
    if isinstance(model, list):
        _check_list(model)
        return model
    caller, known = current_request().caller, service.router.names
    names = known if known is not None else {task.name for task in service.engine.tasks.all()}
    found = sorted(name for name in names if fnmatchcase(name, model) and caller.may_ask(name))
    if not found:
        raise UnknownTaskError(f"no task of the caller's is called {model[:200]!r}")
    if len(found) > MOST_TASKS:
        problem, fix = f"too many tasks are called {model[:200]!r}", "send a narrower pattern"
        raise RequestError(problem, found=len(found), expected=f"at most {MOST_TASKS}", fix=fix)
    return found


def listed_in_path(service: Service, task: str, version: str | None) -> list[str]:
    """The tasks that a path names in the place of one: names between commas, or a pattern.

    Raises as `several` does, and `RequestError` for a name that stands twice: outputs are told apart by it.
    """
    if version is not None:
        problem, fix = "a path with a version names one task", "name versions in the list: topic@1.0.0,urgency@2.0.0"
        raise RequestError(problem, found=task[:200], fix=fix)
    if is_pattern(task):
        return several(service, task)
    names = [name.strip() for name in task.split(",")]
    if len(names) > MOST_TASKS or not all(0 < len(name) <= MOST_CHARACTERS for name in names):
        expected = f"1 to {MOST_TASKS} names of 1 to {MOST_CHARACTERS} characters, between commas"
        raise RequestError("not a list of tasks", found=f"{len(names)} names: {task[:200]!r}", expected=expected)
    (most, times), *_ = Counter(names).most_common(1)
    if times > 1:
        fix = "name it once: outputs are told apart by it"
        raise RequestError("a task stands twice in the list", found=repr(most)[:200], fix=fix)
    return several(service, names)


def _check_list(models: Sequence[str]) -> None:
    if pattern := next(filter(is_pattern, models), None):
        problem, fix = "a list holds a pattern", "name its tasks, or send it as `model` of a request of its own"
        raise RequestError(problem, found=repr(pattern)[:200], expected="names of tasks", fix=fix)
    composed = len(set(filter(is_composed, models)))
    if composed > MOST_COMPOSED:
        raise RequestError("too many compositions in one request", found=composed, expected=f"at most {MOST_COMPOSED}")


async def infos(service: Service, models: Sequence[str]) -> list[TaskInfo]:
    """What the tasks of a list are; packages are read where they were not yet. Raises `ForbiddenError` where one is not
    the caller's, and the first task's error where one cannot be read."""
    call = current_request()
    call.caller.check_tasks(name for model in models for name in parse_model(model).names)
    return await run_sync(_infos, service, call, models)


def _infos(service: Service, call: RequestContext, models: Sequence[str]) -> list[TaskInfo]:
    reader, found = TaskReader(service), []
    for model in models:
        with discreet(call, model):
            routed = service.resolve(call, model)
            assert routed.model is not None  # only the plain backbone has none
            reader.read(routed.model)
            found.append(service.engine.info(routed.model, service.settings.timeout))
    return found


class TaskReader:
    """Finds and reads the packages of one request's tasks, all of them in the time that one may take: a list of a
    thousand tasks whose hub is silent ends as soon as one does."""

    def __init__(self, service: Service):
        self._service, self._seconds = service, service.settings.timeout
        self._end = time.monotonic() + self._seconds

    def read(self, model: ModelRef) -> None:
        """Read a task's package where that was not done before; raises what keeps it from being read."""
        error = unreadable(self._service.engine, model, max(self._end - time.monotonic(), 0.001))
        if isinstance(error, CancelledError) and time.monotonic() >= self._end:
            problem, found = f"{str(model)[:200]} was not loaded in time", f"{self._seconds:g} s for all tasks"
            raise CancelledError(problem, found=found, fix="ask again, or ask for fewer tasks")
        if error is not None:
            raise error

    def serves(self, model: ModelRef) -> bool:
        """Whether tasks that are served can be meant. An `UnknownTaskError` says no more than this, but looks for a
        similar name, which takes long among thousands."""
        router = self._service.router
        if router.names is not None:
            return router.knows(model)
        return self._has(model.task) or (bool(model.terms) and all(self._has(term.task) for term in model.terms))

    def _has(self, asked: TaskRef) -> bool:
        return any(asked.matches(task.version, task.digest) for task in self._tasks.get(asked.name, ()))

    @cached_property
    def _tasks(self) -> Mapping[str, Sequence[Task]]:
        found = defaultdict(list)
        for task in self._service.engine.tasks.all():
            found[task.name].append(task)
        return found
