"""What asks for nothing changes nothing: every optional field of the clients' APIs, at null and at its default.

The fields of OpenAI's API are those of the installed client, so one that a later client adds shows up here.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import openai
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import chat_completion_stream_options_param
from openai.types.chat import completion_create_params as chat_params

from serving.protocol.openai import ChatCompletionRequest, CompletionRequest
from serving.protocol.request_model import RequestModel
from serving.protocol.tasks import ClassifyRequest, EmbeddingsRequest, RerankRequest, ScoreRequest

NULL = (None,)
COMPLETION: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": NULL,
    "max_tokens": (16,),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "seed": NULL,
    "stop": NULL,
    "stream": (False,),
    "stream_options": ({}, {"include_usage": None}),
    "suffix": NULL,
    "temperature": (1,),
    "top_p": (1,),
    "user": ("somebody",),
}
CHAT: Mapping[str, tuple[Any, ...]] = {
    **{name: COMPLETION[name] for name in COMPLETION.keys() - {"best_of", "echo", "suffix", "max_tokens", "logprobs"}},
    "audio": NULL,
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logprobs": (False,),
    "max_completion_tokens": NULL,
    "max_tokens": NULL,
    "metadata": ({}, {"a": "b"}),
    "modalities": (["text"],),
    "moderation": NULL,
    "parallel_tool_calls": (True, False),
    "prediction": NULL,
    "prompt_cache_key": ("a",),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory", "24h"),
    "reasoning_effort": ("none", "medium"),
    "response_format": ({"type": "text"},),
    "safety_identifier": ("a",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": NULL,
}
EMBEDDING: Mapping[str, tuple[Any, ...]] = {
    "dimensions": NULL,
    "encoding_format": ("float",),
    "user": ("somebody",),
}
STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {"include_obfuscation": (True, False), "include_usage": (False,)}
SCHEMAS = {
    "completion": (completion_create_params.CompletionCreateParamsNonStreaming, COMPLETION),
    "chat": (chat_params.CompletionCreateParamsNonStreaming, CHAT),
    "embedding": (embedding_create_params.EmbeddingCreateParams, EMBEDDING),
    "stream options": (chat_completion_stream_options_param.ChatCompletionStreamOptionsParam, STREAM_OPTIONS),
}
NEEDED = {"model", "prompt", "messages", "input"}
POOLING = {"user": "a", "request_id": "a", "priority": 0, "use_activation": True, "add_special_tokens": True}
TASKS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {  # by route: a request, and what else asks for nothing
    "/v1/classify": ({"model": "three", "input": ["the fox"]}, {**POOLING, "mm_processor_kwargs": {}}),
    "/v1/score": ({"model": "backbone", "text_1": "the fox", "text_2": ["a dog"]}, {**POOLING, "softmax": True}),
    "/v1/rerank": (
        {"model": "backbone", "query": "the fox", "documents": ["a dog", "the fox"]},
        {**POOLING, "max_tokens_per_doc": 4096, "rank_fields": ["text"], "return_documents": True},
    ),
    "/v1/embeddings": (
        {"model": "three", "input": ["the fox"]},
        {**POOLING, "normalize": True, "embed_dtype": "float32", "endianness": "native", "encoding_format": "float"},
    ),
}
MODELS: Mapping[str, type[RequestModel]] = {
    "/v1/classify": ClassifyRequest,
    "/v1/score": ScoreRequest,
    "/v1/rerank": RerankRequest,
    "/v1/embeddings": EmbeddingsRequest,
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
}


@pytest.fixture(scope="module")
def speaker(language_server: Any) -> Iterator[openai.OpenAI]:
    yield from _client(language_server.port)


@pytest.fixture(scope="module")
def embedder(server: Any) -> Iterator[openai.OpenAI]:
    yield from _client(server.port)


def _client(port: int) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False, timeout=60)
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


def optional_fields(schema: type) -> set[str]:
    return set(typing.get_type_hints(schema)) - NEEDED


def values_of(kind: str) -> Iterator[dict[str, Any]]:
    """One field at one value that asks for nothing, and all fields at null together."""
    schema, defaults = SCHEMAS[kind]
    yield dict.fromkeys(optional_fields(schema))
    for name in sorted(optional_fields(schema)):
        for value in (None, *defaults[name]):
            yield {name: value}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_field_of_openais_client_has_a_value_that_asks_for_nothing(kind: str) -> None:
    """A field that a later client adds is to be served, or to be given its place among the neutral fields."""
    schema, defaults = SCHEMAS[kind]
    assert optional_fields(schema) == set(defaults)


def ask(call: Callable[..., Any], body: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    """By OpenAI's client, nulls included, which it would leave out of some of its own arguments."""
    return call(**body, extra_body=dict(more))


def test_openais_completions_are_the_same_with_what_asks_for_nothing(speaker: openai.OpenAI) -> None:
    body = {"model": "gruff", "prompt": "SAILOR:\n", "seed": 3, "stop": ["\n"]}
    wanted = ask(speaker.completions.create, body, {}).choices
    for more in values_of("completion"):
        kept = {name: value for name, value in more.items() if name not in body}
        assert ask(speaker.completions.create, body, kept).choices == wanted, more


def test_openais_chats_are_the_same_with_what_asks_for_nothing(speaker: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Who waits by the quay?"}]
    nothing = {"name": None, "tool_calls": None, "refusal": None, "audio": None, "function_call": None}
    body = {"model": "meek", "messages": messages, "seed": 3, "stop": ["\n"]}
    wanted = ask(speaker.chat.completions.create, body, {}).choices
    for more in values_of("chat"):
        kept = {name: value for name, value in more.items() if name not in body}
        assert ask(speaker.chat.completions.create, body, kept).choices == wanted, more
    with_nothing = {"messages": [{**messages[0], **nothing}], "seed": 3, "stop": ["\n"]}
    assert ask(speaker.chat.completions.create, body, with_nothing).choices == wanted
    for name in ("seed", "stop"):
        assert ask(speaker.chat.completions.create, body, {name: None, "max_tokens": 2}).choices


def test_openais_embeddings_are_the_same_with_what_asks_for_nothing(embedder: openai.OpenAI) -> None:
    body = {"model": "three", "input": ["the fox", "a dog"]}
    wanted = [entry.embedding for entry in embedder.embeddings.create(**body).data]
    for more in values_of("embedding"):
        found = [entry.embedding for entry in ask(embedder.embeddings.create, body, more).data]
        assert found == [pytest.approx(vector, abs=1e-6) for vector in wanted], more


def test_a_streams_options_ask_for_nothing_too(speaker: openai.OpenAI) -> None:
    body = {"model": "gruff", "prompt": "SAILOR:\n", "seed": 3, "max_tokens": 6, "stream": True}

    def text(more: Mapping[str, Any]) -> tuple[str, int]:
        events = list(speaker.completions.create(**body, extra_body={"stream_options": dict(more)}))
        return "".join(event.choices[0].text for event in events), len(events)

    wanted = text({})
    for more in values_of("stream options"):
        assert text(more) == wanted, more


@pytest.mark.parametrize("path", TASKS)
def test_a_tasks_answer_is_the_same_with_what_asks_for_nothing(server: Any, path: str) -> None:
    """Those of vLLM, Cohere and Jina, and null in every optional field that we know."""
    body, more = TASKS[path]
    answers = "results" if path == "/v1/rerank" else "data"
    wanted = server.post(path, **body).json()[answers]
    model = MODELS[path]
    optional = {name for name, field in model.model_fields.items() if not field.is_required()} | model.neutral.keys()
    nulls = [{name: None} for name in sorted(optional - body.keys())]
    for extra in [{name: value} for name, value in more.items()] + nulls + [dict.fromkeys(optional - body.keys())]:
        found = server.post(path, **body, **extra)
        assert found.status_code == 200, (extra, found.text)
        assert found.json()[answers] == wanted, extra


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/completions", "frequency_penalty", 0.5),
        ("/v1/completions", "logit_bias", {"5": 1}),
        ("/v1/completions", "best_of", 2),
        ("/v1/completions", "echo", True),
        ("/v1/completions", "suffix", "the end"),
        ("/v1/completions", "top_k", 5),
        ("/v1/chat/completions", "tools", [{"type": "function", "function": {"name": "f"}}]),
        ("/v1/chat/completions", "tool_choice", "required"),
        ("/v1/chat/completions", "response_format", {"type": "json_object"}),
        ("/v1/chat/completions", "reasoning_effort", "high"),
        ("/v1/chat/completions", "modalities", ["text", "audio"]),
        ("/v1/chat/completions", "store", True),
        ("/v1/chat/completions", "service_tier", "priority"),
        ("/v1/chat/completions", "web_search_options", {}),
        ("/v1/chat/completions", "chat_template", "{{ messages }}"),
        ("/v1/classify", "use_activation", False),
        ("/v1/classify", "priority", 3),
        ("/v1/score", "truncation_side", "left"),
        ("/v1/rerank", "max_tokens_per_doc", 10),
        ("/v1/rerank", "rank_fields", ["title"]),
        ("/v1/embeddings", "normalize", False),
        ("/v1/embeddings", "embed_dtype", "float16"),
    ],
)
def test_what_would_change_the_answer_is_named_as_not_supported(
    server: Any, language_server: Any, path: str, field: str, value: Any
) -> None:
    bodies = {name: body for name, (body, _) in TASKS.items()}
    bodies["/v1/completions"] = {"model": "gruff", "prompt": "SAILOR:\n"}
    bodies["/v1/chat/completions"] = {"model": "gruff", "messages": [{"role": "user", "content": "a"}]}
    asked = language_server if "completions" in path else server
    answer = asked.client.post(path, json={**bodies[path], field: value})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field and error["type"] == "invalid_request_error"
    assert error["code"] == "UnsupportedFieldError" and f"{field} is not supported" in error["message"]


def test_tools_in_a_message_are_not_dropped_in_silence(speaker: openai.OpenAI) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for more in ({"tool_calls": [call]}, {"refusal": "no"}, {"reasoning_content": "because"}):
        messages: Any = [{"role": "assistant", "content": "a", **more}]
        with pytest.raises(openai.BadRequestError, match=f"{next(iter(more))} is not supported"):
            speaker.chat.completions.create(model="gruff", messages=messages)


def test_top_logprobs_need_logprobs(speaker: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]
    for more in ({}, {"logprobs": False}, {"logprobs": None}):
        with pytest.raises(openai.BadRequestError, match="needs logprobs") as refused:
            speaker.chat.completions.create(model="gruff", messages=messages, top_logprobs=3, extra_body=more)
        assert refused.value.param == "top_logprobs"
