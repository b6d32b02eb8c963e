"""Text of many tasks in one batch equals each task's own model, token for token, whatever comes and goes meanwhile."""

from __future__ import annotations

import pytest
import torch
import transformers

from sparsehub.backbone import load_backbone
from sparsehub.engine import Budgets, Engine, GenerationLimits, Sampling, Task
from sparsehub.errors import CancelledError, QueueFullError, RequestError, StoppingError, UnhealthyError
from sparsehub.package import read_package
from tests.support.stepped_engines import run, stepped_engines

PROMPTS = [
    "SAILOR:\n",
    "CLERK:\nItem: the tide",
    "POET:\nO north wind, that turns",
    "Why?",
    "BAKER:\nWarm bread, warm bread! The night boat comes home, and still my",
]


@pytest.fixture
def engine(tiny_language):
    with stepped_engines(tiny_language.folder) as make:
        yield make


def ids(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer(text)["input_ids"]


def test_sixteen_tasks_in_one_batch_arriving_and_leaving_say_what_each_says_alone(engine, speakers, says):
    mixed, packages = engine(), [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(16)]
    for package in packages:
        mixed.add(read_package(package))
    lengths = [5 + (7 * i) % 23 for i in range(16)]
    asked, together = [], 0
    for i in range(16):
        prompt = PROMPTS[i % 5] if i % 3 else PROMPTS[i % 5] * 3  # some are split over steps
        asked.append(mixed.generate(f"s{i}", prompt, Sampling(max_tokens=lengths[i])))
        for _ in range(i % 3):
            mixed.generator.step()
            together = max(together, mixed.generator.usage().running)
    run(mixed, asked)
    assert together >= 8
    for package, generation, length in zip(packages, asked, lengths, strict=True):
        assert list(generation.result(0).tokens) == says(package, generation.prompt, length), package
    assert mixed.generator.usage().pages == 0
    assert len({generation.result().text for generation in asked}) > 8  # the tasks do say different things


def test_the_plain_backbone_and_a_task_share_a_batch(engine, speakers, says):
    mixed, package = engine(), speakers.write("one", "text-generation", seed=40, scale=0.3)
    mixed.add(read_package(package))
    asked = [mixed.generate(name, "SAILOR:\nAye,", Sampling(max_tokens=20)) for name in (None, "one", None)]
    run(mixed, asked)
    for generation, owner in zip(asked, (None, package, None), strict=True):
        assert list(generation.result().tokens) == says(owner, generation.prompt, 20)


@pytest.mark.parametrize("mode", ["swap", "mixed", "auto"])
def test_every_way_of_running_says_the_same(engine, speakers, says, mode):
    made, packages = (
        engine(mode=mode),
        [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(3)],
    )
    for package in packages:
        made.add(read_package(package))
    names = [0, 1, 0, 2, 1, 0]
    asked = [made.generate(f"s{n}", PROMPTS[i % 5], Sampling(max_tokens=9 + i)) for i, n in enumerate(names)]
    run(made, asked)
    for i, (n, generation) in enumerate(zip(names, asked, strict=True)):
        assert list(generation.result().tokens) == says(packages[n], generation.prompt, 9 + i)
    made.arena.release_active()
    assert made.arena.check_all()


def test_a_task_that_cannot_be_mixed_waits_for_the_others_to_drain_and_then_runs_alone(
    engine, speakers, says, monkeypatch
):
    """Pretend that a norm's scale is read by a module that mixed batches do not know."""
    made = engine()
    slot = made.backbone.arena.slots["norm.weight"]
    made._targets.others[slot] = "is read by something else"
    mixable = speakers.write("easy", "text-generation", seed=3, scale=0.3, per_parameter=9)
    swap_only = speakers.write("hard", "text-generation", seed=4, scale=0.3)
    monkeypatch.setattr(type(made._targets), "why_not", lambda self, slots: None)
    made.add(read_package(mixable))
    monkeypatch.undo()
    made.add(read_package(swap_only))
    assert {s.task.name: bool(s.why_swap) for s in made.status()} == {"easy": False, "hard": True}
    names = ["easy", None, "hard", "easy", "hard"]
    asked = [made.generate(name, PROMPTS[i], Sampling(max_tokens=8)) for i, name in enumerate(names)]
    seen = set()
    while not all(g.future.done() for g in asked):
        made.generator.step()
        seen.add(frozenset(str(g.task and g.task.name) for g in made.generator._batcher.running))
    assert not any("hard" in group and len(group) > 1 for group in seen)
    owners = {"easy": mixable, "hard": swap_only, None: None}
    for name, generation in zip(names, asked, strict=True):
        assert list(generation.result().tokens) == says(owners[name], generation.prompt, 8)


def test_where_packed_tokens_are_not_in_the_order_that_we_believe_nothing_is_mixed(
    engine, speakers, says, monkeypatch, caplog
):
    """As if another release of transformers packed sequences the other way round."""
    from sparsehub.engine.generation import packing

    real = packing._mixed
    monkeypatch.setattr(packing, "_mixed", lambda targets, parts: real(targets, parts[::-1]))
    made, packages = engine(), [speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(3)]
    assert "by swap alone" in caplog.text
    for package in packages:
        made.add(read_package(package))
    asked = [made.generate(f"s{i % 3}", PROMPTS[i], Sampling(max_tokens=8)) for i in range(5)]
    run(made, asked)
    for i, generation in enumerate(asked):
        assert list(generation.result().tokens) == says(packages[i % 3], generation.prompt, 8)


def test_a_task_reloaded_under_its_name_while_texts_run_is_never_mixed_with_what_it_was(engine, speakers, says):
    """The same prompts before and after: neither weights nor cached keys of one may reach the other."""
    made = engine()
    before, after = (speakers.write("name", "text-generation", seed=s, scale=0.4, version="1.0.0") for s in (50, 51))
    tasks = [Task("name", "1.0.0", p.digest, lambda p=p: p) for p in (read_package(before), read_package(after))]
    made.register(tasks[0])
    made.load("name")
    first = [made.generate("name", prompt, Sampling(max_tokens=24)) for prompt in PROMPTS]
    for _ in range(6):
        made.generator.step()
    made.register(tasks[1], replace=True)
    made.load("name")
    second = [made.generate("name", prompt, Sampling(max_tokens=24)) for prompt in PROMPTS]
    run(made, first + second)
    for generation in first:
        assert generation.task.digest == tasks[0].digest
        assert list(generation.result().tokens) == says(before, generation.prompt, 24)
    for generation in second:
        assert generation.task.digest == tasks[1].digest
        assert list(generation.result().tokens) == says(after, generation.prompt, 24)
    assert first[0].result().text != second[0].result().text
    assert made.usage.device_tasks == 1  # the old one went with its last text


def test_two_tasks_with_the_same_long_prompt_share_no_page(engine, speakers):
    made = engine()
    for i in range(2):
        made.add(read_package(speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3)))
    asked = [made.generate(f"s{i}", PROMPTS[4], Sampling(max_tokens=4)) for i in (0, 1, 1)]
    made.generator.step()
    made.generator.step()
    cache = made.generator._batcher._processor.cache
    if hasattr(cache, "cache_allocators"):
        allocator = next(iter(cache.cache_allocators.values()))
    else:  # transformers 5.17
        allocator = cache.group_cache_managers[0]
    pages = [page for table in allocator.block_table.values() for page in table]
    assert len(pages) == len(set(pages)) >= 3
    run(made, asked)


def test_a_cancelled_text_is_out_of_the_cache_before_the_next_step(engine):
    made = engine()
    asked = [made.generate(None, prompt, Sampling(max_tokens=40)) for prompt in PROMPTS]
    for _ in range(4):
        made.generator.step()
    used = made.generator.usage().pages
    asked[0].cancel()
    asked[4].cancel()
    made.generator.step()
    assert made.generator.usage().running == 3 and made.generator.usage().pages < used
    for g in asked:
        g.cancel()
    assert made.generator.step() is False
    assert made.generator.usage().pages == 0
    for g in asked:
        with pytest.raises(CancelledError):
            g.result(0)


def test_a_full_cache_makes_others_wait_and_then_refuses(engine, says):
    made = engine(generation=GenerationLimits(cache_tokens=96, waiting=4))
    asked = [made.generate(None, "SAILOR:\n", Sampling(max_tokens=30)) for _ in range(4)]
    made.generator.step()
    assert made.generator.usage().running == 2 and made.generator.usage().waiting == 2
    asked += [made.generate(None, "SAILOR:\n", Sampling(max_tokens=30)) for _ in range(2)]
    with pytest.raises(QueueFullError) as refused:
        made.generate(None, "SAILOR:\n", Sampling(max_tokens=30))
    assert refused.value.retry_after > 0
    run(made, asked)
    assert {g.result().tokens for g in asked} == {tuple(says(None, asked[0].prompt, 30))}
    assert made.generator.usage().pages == 0


def test_a_text_that_waits_too_long_is_told_so(engine):
    made = engine(generation=GenerationLimits(cache_tokens=48))
    running = made.generate(None, "SAILOR:\n", Sampling(max_tokens=30))
    late = made.generate(None, "SAILOR:\n", Sampling(max_tokens=30), timeout=1e-6)
    made.generator.step()
    with pytest.raises(CancelledError, match="deadline"):
        late.result(0)
    run(made, [running])


@pytest.mark.parametrize(
    ("prompt", "sampling", "says_what"),
    [
        ([], {}, "empty"),
        ([5, 99_999], {}, "token that the model does not have"),
        ([-1], {}, "token that the model does not have"),
        ("tide " * 300, {}, "context"),
        ("tide", {"max_tokens": 5000}, "max_tokens"),
        ("a \ud800 b", {}, "surrogate"),
        ([{"role": "user"}], {}, "not a message"),
        ("tide", {"temperature": -1.0}, "temperature"),
        ("tide", {"temperature": float("nan")}, "temperature"),
        ("tide", {"top_p": 0.0}, "top_p"),
        ("tide", {"max_tokens": 0}, "max_tokens"),
        ("tide", {"stop": ("",)}, "stop"),
        ("tide", {"logprobs": 21}, "logprobs"),
    ],
)
def test_what_transformers_would_fall_over_is_refused_first(shared_engine, prompt, sampling, says_what):
    with pytest.raises(RequestError, match=says_what):
        shared_engine.generate(None, prompt, Sampling(**sampling))
    good = shared_engine.generate(None, "tide", Sampling(max_tokens=2))
    run(shared_engine, [good])


@pytest.fixture(scope="module")
def shared_engine(tiny_language):
    return Engine(load_backbone(str(tiny_language.folder)), check_seconds=0)


def test_a_seed_gives_the_same_text_alone_and_beside_others(shared_engine):
    sampling = Sampling(max_tokens=16, temperature=1.0, top_p=0.9, seed=7)
    alone = shared_engine.generate(None, "POET:\n", sampling)
    run(shared_engine, [alone])
    others = [shared_engine.generate(None, p, Sampling(max_tokens=20, temperature=1.3)) for p in PROMPTS]
    shared_engine.generator.step()
    beside = shared_engine.generate(None, "POET:\n", sampling)
    other = shared_engine.generate(None, "POET:\n", Sampling(max_tokens=16, temperature=1.0, top_p=0.9, seed=8))
    run(shared_engine, [*others, beside, other])
    assert alone.result().text == beside.result().text != other.result().text


def test_drawn_tokens_have_the_models_probabilities(shared_engine, tiny_language):
    """The first token of 400 texts against the softmax, and with top_p against what is left of it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_language.folder).eval()
    prompt = ids(shared_engine, "CHILD:\nLook, look! ")
    with torch.inference_mode():
        wanted = (model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    for top_p in (1.0, 0.6):
        asked = [
            shared_engine.generate(None, prompt, Sampling(max_tokens=1, temperature=0.7, top_p=top_p, seed=s))
            for s in range(400)
        ]
        run(shared_engine, asked)
        found = torch.bincount(torch.tensor([g.result().tokens[0] for g in asked]), minlength=len(wanted)) / 400
        kept = wanted.clone()
        if top_p < 1:
            ordered, places = wanted.sort(descending=True)
            kept[places[ordered.cumsum(0) - ordered >= top_p]] = 0
            kept /= kept.sum()
            assert not bool(found[kept == 0].any())
        assert float((found - kept).abs().sum()) / 2 < 0.2  # total variation; by chance about 0.1


def test_log_probabilities_are_the_models(shared_engine, tiny_language):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_language.folder).eval()
    asked = [
        shared_engine.generate(None, "CLERK:\nItem:", Sampling(max_tokens=10, logprobs=3, temperature=t, seed=1))
        for t in (0.0, 0.8)
    ]
    run(shared_engine, asked)
    for generation in asked:
        done = generation.result()
        with torch.inference_mode():
            logits = model(torch.tensor([[*generation.prompt, *done.tokens]])).logits[0].log_softmax(-1)
        for place, log in enumerate(done.logs):
            row = logits[len(generation.prompt) + place - 1]
            assert log.token == done.tokens[place]
            assert log.logprob == pytest.approx(float(row[log.token]), abs=1e-4)
            assert [t for t, _, _ in log.top] == row.topk(3).indices.tolist()
    assert all(log.top[0][0] == log.token for log in asked[0].result().logs)


def test_a_text_ends_before_a_stop_text_and_at_an_end_token(shared_engine, says):
    whole = shared_engine.generate(None, "BAKER:\n", Sampling(max_tokens=40))
    run(shared_engine, [whole])
    text = whole.result().text
    word = text.split()[4]
    asked = [
        shared_engine.generate(None, "BAKER:\n", Sampling(max_tokens=40, stop=(word,))),
        shared_engine.generate(None, "BAKER:\n", Sampling(max_tokens=40, stop=("\n\n", "never said"))),
    ]
    heard = [list(generation.pieces()) if run(shared_engine, asked) is None else [] for generation in asked]
    for generation, stop, pieces in zip(asked, (word, "\n\n"), heard, strict=True):
        done = generation.result()
        assert done.finish == "stop" and done.text == text[: text.index(stop)]
        assert "".join(piece.text for piece in pieces) == done.text
        assert sum(piece.tokens for piece in pieces) == len(done.tokens) < 40
    assert shared_engine.generator.usage().pages == 0


def test_a_conversation_is_answered_by_the_chat_template(shared_engine, says):
    messages = [{"role": "user", "content": "Who waits?"}]
    generation = shared_engine.generate(None, messages, Sampling(max_tokens=6))
    run(shared_engine, [generation])
    text = shared_engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert list(generation.prompt) == shared_engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(generation.result().tokens) == says(None, generation.prompt, 6)


def test_a_step_that_fails_is_told_to_those_it_concerns_and_the_next_one_runs(engine, monkeypatch):
    made = engine()
    asked = [made.generate(None, prompt, Sampling(max_tokens=8)) for prompt in PROMPTS]
    made.generator.step()
    monkeypatch.setattr(type(made.backbone.whole), "forward", lambda *_, **__: 1 / 0)
    made.generator.step()
    monkeypatch.undo()
    for generation in asked:
        with pytest.raises(UnhealthyError, match="ZeroDivision"):
            generation.result(0)
    again = made.generate(None, PROMPTS[0], Sampling(max_tokens=8))
    run(made, [again])
    assert made.generator.usage().pages == 0 and len(again.result().tokens) == 8


def test_texts_come_while_the_engine_runs_and_stop_is_told_to_those_that_are_left(engine, speakers, says):
    made, package = engine(budgets=Budgets(loaders=1)), speakers.write("s1", "text-generation", seed=1, scale=0.3)
    read = read_package(package)
    made.register(Task("s1", "1.0.0", read.digest, lambda: read))
    made.start()
    heard = list(made.generate("s1", "SAILOR:\n", Sampling(max_tokens=12)).pieces())
    assert len(heard) > 3 and heard[-1].finish in ("length", "stop")
    made.generate(None, "SAILOR:\n", Sampling(max_tokens=4)).result(10)
    long = [made.generate("s1", "SAILOR:\n", Sampling(max_tokens=140)) for _ in range(8)]
    made.stop(drain=0)
    for generation in long:
        with pytest.raises(StoppingError):
            generation.result(0)
    assert made.usage.device_tasks <= 1
    with pytest.raises(UnhealthyError):
        made.generate(None, "SAILOR:\n")


def test_a_task_that_cannot_be_loaded_fails_its_own_texts(engine):
    made = engine()

    def broken():
        raise OSError("the disk is gone")

    made.register(Task("lost", "1.0.0", "sha256:" + "0" * 64, broken))
    with pytest.raises(Exception, match="the disk is gone"):
        made.generate("lost", "SAILOR:\n")
    fine = made.generate(None, "SAILOR:\n", Sampling(max_tokens=3))
    run(made, [fine])


def test_a_generation_task_answers_no_classification_and_the_other_way_round(engine, speakers, tiny_tasks):
    made = engine()
    made.add(read_package(speakers.write("s1", "text-generation", seed=1)))
    with pytest.raises(RequestError, match="completions"):
        made.classify("s1", ["the tide"])
    encoder = Engine(load_backbone(str(tiny_tasks.folder)), check_seconds=0)
    assert encoder.generator is None
    with pytest.raises(RequestError, match="generates no text"):
        encoder.generate(None, "the tide")
    classifier = speakers.write("kind", "text-classification", labels=2, seed=2)
    made.add(read_package(classifier))
    with pytest.raises(RequestError, match="generates no text"):
        made.generate("kind", "the tide")
    ticket = made.classify("kind", ["the tide"])  # both kinds share the language model
    made.step()
    assert ticket.futures[0].result(0).label in ("label0", "label1")
