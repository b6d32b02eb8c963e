"""Completions and chat completions, asked by OpenAI's own client."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from serving.auth import Authenticator, Key, KeyRing
from serving.protocol.base import UsageInfo
from serving.protocol.formatters import ChatFormatter, CompletionFormatter
from sparsehub.engine import Completion
from sparsehub.engine.generation import TokenAlternative, TokenLog
from sparsehub.files import sha256_bytes

MESSAGES = [{"role": "user", "content": "Who waits by the quay?"}]


@pytest.fixture(scope="module")
def client(language_server):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{language_server.port}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(trust_env=False, timeout=60),
    ) as made:
        yield made


@pytest.fixture(scope="module")
def alone(language_server, speakers, says):
    """alone(name or None, text, tokens): what the materialised model says by itself."""
    tokenizer = language_server.engine.tokenizer

    def text(name, prompt, tokens) -> str:
        package = None if name is None else speakers.write(name, "text-generation", seed=("gruff", "meek").index(name))
        return tokenizer.decode(says(package, tokenizer(prompt)["input_ids"], tokens), skip_special_tokens=True)

    return text


def test_a_completion_is_what_the_tasks_own_model_says(client, alone, language_server):
    for name in ("gruff", "meek"):
        found = client.completions.create(model=name, prompt="SAILOR:\n", max_tokens=20, temperature=0)
        assert found.choices[0].text == alone(name, "SAILOR:\n", 20)
        assert found.choices[0].finish_reason == "length" and found.object == "text_completion"
        tokens = len(language_server.engine.tokenizer("SAILOR:\n")["input_ids"])
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (tokens, 20)
        assert found.digest == language_server.engine.info(name).digest and found.task == f"{name}@1.0.0"
    plain = client.completions.create(model="tiny/lm", prompt="SAILOR:\n", max_tokens=20, temperature=0)
    assert plain.choices[0].text == alone(None, "SAILOR:\n", 20)


def test_many_clients_at_once_each_get_their_own_tasks_text(client, alone):
    asked = [(("gruff", "meek", None)[i % 3], f"POET:\nO {'tide ' * (i % 4)}") for i in range(18)]
    wanted = {pair: alone(*pair, 12) for pair in asked}

    def ask(pair):
        name, prompt = pair
        found = client.completions.create(model=name or "tiny/lm", prompt=prompt, max_tokens=12, temperature=0)
        return found.choices[0].text

    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(ask, asked)) == [wanted[pair] for pair in asked]


def test_a_stream_is_the_same_text_in_pieces(client, alone):
    options = {"model": "gruff", "prompt": "CLERK:\nItem:", "max_tokens": 24, "temperature": 0}
    with client.completions.create(**options, stream=True, stream_options={"include_usage": True}) as stream:
        events = list(stream)
    pieces = [event.choices[0] for event in events if event.choices]
    assert "".join(piece.text for piece in pieces) == alone("gruff", "CLERK:\nItem:", 24)
    assert len(pieces) > 5 and [p.finish_reason for p in pieces if p.finish_reason] == ["length"]
    assert events[-1].usage.completion_tokens == 24 and len({event.id for event in events}) == 1


def test_a_conversation_is_answered_whole_and_in_pieces(client, alone, language_server):
    whole = client.chat.completions.create(model="meek", messages=MESSAGES, max_tokens=16, temperature=0)
    prompt = language_server.engine.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert whole.choices[0].message.content == alone("meek", prompt, 16)
    assert whole.choices[0].message.role == "assistant" and whole.object == "chat.completion"
    with client.chat.completions.create(
        model="meek", messages=MESSAGES, max_completion_tokens=16, temperature=0, stream=True
    ) as stream:
        events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content or "" for e in events) == whole.choices[0].message.content
    assert events[-1].choices[0].finish_reason == "length"
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    again = client.chat.completions.create(model="meek", messages=parts, max_tokens=16, temperature=0)
    assert again.choices[0].message.content == whole.choices[0].message.content


def test_n_texts_of_several_prompts_in_order_and_seeds_that_repeat_them(client):
    def ask(**more):
        return client.completions.create(
            model="gruff", prompt=["SAILOR:\n", "CHILD:\nWhy?"], n=3, max_tokens=12, temperature=1.2, **more
        )

    first, again, other = ask(seed=5), ask(seed=5), ask(seed=99)
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == list(range(6))
    assert len(set(texts)) > 3 and texts == [choice.text for choice in again.choices]
    assert texts != [choice.text for choice in other.choices]
    single = client.completions.create(
        model="gruff", prompt="CHILD:\nWhy?", max_tokens=12, temperature=1.2, seed=5, top_p=0.999999
    )
    assert single.choices[0].text == texts[3]  # the first of the second prompt's
    with client.completions.create(
        model="gruff", prompt="SAILOR:\n", n=3, max_tokens=12, temperature=1.2, seed=5, stream=True
    ) as stream:
        said = ["", "", ""]
        for event in stream:
            said[event.choices[0].index] += event.choices[0].text
    assert said == texts[:3]


def test_stop_texts_end_a_text_and_are_not_in_it(client):
    whole = client.completions.create(model="gruff", prompt="BAKER:\n", max_tokens=40, temperature=0).choices[0].text
    word = whole.split()[3]
    for stop in (word, ["never said", word]):
        found = client.completions.create(model="gruff", prompt="BAKER:\n", max_tokens=40, temperature=0, stop=stop)
        assert found.choices[0].text == whole[: whole.index(word)] and found.choices[0].finish_reason == "stop"


def test_log_probabilities_in_both_shapes(client):
    old = client.completions.create(model="meek", prompt="CLERK:\n", max_tokens=6, temperature=0, logprobs=2)
    logs, text = old.choices[0].logprobs, old.choices[0].text
    assert "".join(logs.tokens) == text and logs.text_offset[0] == 0 and len(logs.top_logprobs[0]) == 2
    assert all(text[at:].startswith(token) for at, token in zip(logs.text_offset, logs.tokens, strict=True))
    new = client.chat.completions.create(
        model="meek", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    for entry in new.choices[0].logprobs.content:
        assert entry.logprob == entry.top_logprobs[0].logprob and len(entry.top_logprobs) == 3
        assert bytes(entry.bytes).decode(errors="replace") and math.exp(entry.logprob) <= 1
    with client.completions.create(
        model="meek", prompt="CLERK:\n", max_tokens=6, temperature=0, logprobs=2, stream=True
    ) as stream:
        offsets = [at for event in stream if event.choices[0].logprobs for at in event.choices[0].logprobs.text_offset]
    assert offsets == logs.text_offset


def test_half_a_character_is_its_bytes_and_alternatives_that_look_alike_are_all_there():
    """No token of a text is U+FFFD, and no alternative hides another."""
    halves = [TokenAlternative(7, b"\xf0\x9f", -1.0), TokenAlternative(8, b"\xf0\x9f", -2.0)]
    alike = [TokenAlternative(1, b"a", -3.0), TokenAlternative(2, b"a", -4.0), TokenAlternative(3, b"\xff", -5.0)]
    text = Completion("", (7,), "length", (TokenLog(7, b"\xf0\x9f", -1.0, 0, (*halves, *alike)),))
    head = {"id": "a", "created": 0, "model": "m"}
    used = UsageInfo(prompt_tokens=0, completion_tokens=1, total_tokens=1)
    old = CompletionFormatter().response(head, [text], used).choices[0].logprobs
    assert old.tokens == ["bytes:\\xf0\\x9f"]
    assert old.top_logprobs == [
        {"bytes:\\xf0\\x9f": -1.0, "token_id:8": -2.0, "a": -3.0, "token_id:2": -4.0, "bytes:\\xff": -5.0}
    ]
    new = ChatFormatter().response(head, [text], used).choices[0].logprobs.content[0]
    assert (new.token, new.bytes) == ("bytes:\\xf0\\x9f", [0xF0, 0x9F])
    assert [entry.bytes for entry in new.top_logprobs] == [[0xF0, 0x9F], [0xF0, 0x9F], [97], [97], [255]]


def test_bytes_of_a_hot_text_put_it_together(client):
    """At a high temperature this vocabulary of bytes says parts of characters all the time."""
    found = client.chat.completions.create(
        model="meek", messages=MESSAGES, max_tokens=60, temperature=2, seed=4, logprobs=True, top_logprobs=5
    )
    entries = found.choices[0].logprobs.content
    said = b"".join(bytes(entry.bytes) for entry in entries if entry.token not in ("</s>", "<s>", "<pad>"))
    assert said.decode(errors="replace") == found.choices[0].message.content
    assert any(entry.token.startswith("bytes:") for entry in entries)
    assert not any(entry.token == "\ufffd" for entry in entries)


def test_token_ids_are_a_prompt(client, alone, language_server):
    ids = language_server.engine.tokenizer("SAILOR:\n")["input_ids"]
    found = client.completions.create(model="gruff", prompt=ids, max_tokens=8, temperature=0)
    assert found.choices[0].text == alone("gruff", "SAILOR:\n", 8)


@pytest.mark.parametrize(
    ("change", "error", "says_what"),
    [
        ({"model": "gruf"}, openai.NotFoundError, "did you mean 'gruff'"),
        ({"prompt": ""}, openai.BadRequestError, "no tokens"),
        ({"prompt": []}, openai.BadRequestError, "empty|malformed"),
        ({"prompt": [1, 99_999]}, openai.BadRequestError, "token that the model does not have"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "max_tokens"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"n": 1000}, openai.BadRequestError, "n: "),
        ({"n": 100, "prompt": ["a", "b"]}, openai.BadRequestError, "too many texts"),
        ({"presence_penalty": 1.0}, openai.BadRequestError, "presence_penalty"),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "stop"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client, change, error, says_what):
    for stream in (False, True):
        with pytest.raises(error, match=says_what):
            asked = {"model": "gruff", "prompt": "SAILOR:\n", "max_tokens": 4, "stream": stream, **change}
            list(client.completions.create(**asked))


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]],
)
def test_a_conversation_that_is_none_is_refused(client, messages):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gruff", messages=messages)


def test_a_message_of_an_unknown_role_is_refused(client):
    for role in ("wizard", "tool", "USER"):
        with pytest.raises(openai.BadRequestError, match=f"no such role; found: '{role}'; expected: system, user"):
            client.chat.completions.create(model="gruff", messages=[{"role": role, "content": "a"}])


def test_a_special_token_in_a_prompt_is_text_and_as_a_token_id_is_special(client, language_server):
    """So `</s>` costs as many tokens as its letters have; who wants the token sends its id."""
    tokenizer = language_server.engine.tokenizer

    def tokens(**prompt) -> int:
        ask = client.chat.completions.create if "messages" in prompt else client.completions.create
        return ask(model="gruff", max_tokens=1, **prompt).usage.prompt_tokens

    spelt = len(tokenizer("</s>", split_special_tokens=True)["input_ids"])
    assert spelt > 1 == tokens(prompt=[tokenizer.eos_token_id])
    assert tokens(prompt="</s>") == spelt
    assert (
        tokens(messages=[{"role": "user", "content": "</s>"}]) - tokens(messages=[{"role": "user", "content": ""}])
        == spelt
    )


def test_a_classifier_is_asked_elsewhere_and_a_speaker_is_not_classified(language_server):
    found = language_server.post("/v1/classify", model="gruff", input="the tide")
    assert found.status_code == 400 and "/v1/completions" in found.json()["error"]["message"]


def test_a_client_that_leaves_takes_its_texts_with_it(language_server):
    """Streamed and not: the cache is free again, though nobody read to the end."""
    engine = language_server.engine
    body = {"model": "gruff", "prompt": "SAILOR:\n", "max_tokens": 140, "temperature": 1.5, "n": 40}
    for stream in (True, False):
        with httpx.Client(base_url=f"http://127.0.0.1:{language_server.port}", trust_env=False) as leaving:
            if stream:
                with leaving.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                    assert next(answer.iter_lines()).startswith("data: ")
            else:
                with pytest.raises(httpx.ReadTimeout):
                    leaving.post("/v1/completions", json=body, timeout=0.4)
        said = engine.generator.usage().tokens
        language_server.until(lambda: engine.generator.usage().running == 0)
        assert engine.generator.usage().pages == 0
        assert engine.generator.usage().tokens - said < 40 * 130


def test_what_the_generator_does_is_measured_and_listed(language_server, client):
    client.completions.create(model="gruff", prompt="SAILOR:\n", max_tokens=3)
    text = language_server.client.get("/metrics").text
    assert 'sparsehub_texts{state="running"} 0.0' in text and 'sparsehub_cache_pages{state="used"} 0.0' in text
    lines = [line for line in text.splitlines() if line.startswith("sparsehub_generated_tokens ")]
    assert float(lines[0].split()[1]) >= 3
    kinds = {entry.id: entry.kind for entry in client.models.list() if entry.id != "tiny/lm"}
    assert kinds == {"gruff@1.0.0": "text-generation", "meek@1.0.0": "text-generation"}


def test_events_are_plain_lines_of_json_and_end_with_done(language_server):
    body = {"model": "gruff", "prompt": "鳥 and \u2028 line", "max_tokens": 3, "stream": True}
    with language_server.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])


def test_a_key_opens_its_own_tasks_for_as_many_tokens_as_it_may_have(new_language_server):
    """Tokens count before a text begins, prompt and all that it may come to."""
    ring = KeyRing(
        (
            Key("one", sha256_bytes(b"secret-of-one-that-is-long"), tasks=("gruff",)),
            Key("poor", sha256_bytes(b"secret-of-poor-that-is-long"), tokens_per_second=0.01),
        )
    )
    with new_language_server(Authenticator(ring)) as server:

        def ask(secret: str, **body) -> tuple[int, str]:
            options = {"prompt": "SAILOR:\n", "max_tokens": 4, "temperature": 0, **body}
            headers = {"authorization": f"Bearer {secret}"}
            found = server.client.post("/v1/completions", json=options, headers=headers)
            return found.status_code, found.text

        assert ask("secret-of-one-that-is-long", model="gruff")[0] == 200
        assert ask("secret-of-one-that-is-long", model="meek")[0] == 403
        assert ask("secret-of-one-that-is-long", model="tiny/lm")[0] == 403
        assert ask("nonsense", model="gruff")[0] == 401
        first, second = (ask("secret-of-poor-that-is-long", model="gruff", stream=True) for _ in range(2))
        assert first[0] == 200 and first[1].endswith("data: [DONE]\n\n")
        assert second[0] == 429 and "tokens" in second[1]
