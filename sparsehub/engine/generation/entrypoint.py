"""The entry to text generation: making a generator for an engine, and turning prompts into token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
from sparsehub.engine.generation.batcher import Batcher
from sparsehub.engine.generation.context import GenerationContext
from sparsehub.engine.generation.decoding_check import mixes_well, use_graphs
from sparsehub.engine.generation.generator import Generator
from sparsehub.engine.generation.model_runner import ModelRunner
from sparsehub.engine.generation.output_processor import end_tokens
from sparsehub.engine.generation.packing import Packer
from sparsehub.engine.generation.request import PreparedGeneration, Sampling
from sparsehub.engine.input_bounds import check_prompt
from sparsehub.engine.input_processor import check_text
from sparsehub.engine.pending_request import AcquiredTask
from sparsehub.errors import BackboneError, DataError, RequestError
from sparsehub.package.chat import Conversation
from sparsehub.package.encoding import text_ids
from sparsehub.package.task_spec import TEXT_GENERATION

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


def make_generator(context: GenerationContext) -> Generator | None:
    """The generator of an engine, which does not run yet; None for a backbone that is no causal language model.

    Two short texts are generated first, to prove that tasks can be mixed; where they cannot, every task has a lane of
    its own. On a GPU they are generated from CUDA graphs too. Raises `BackboneError` where the backbone cannot run in
    continuous batches.
    """
    backbone = context.backbone
    if backbone.language_model is None:
        return None
    tokenizer = load_tokenizer(backbone.checkpoint)
    batcher = Batcher(backbone, context.limits, end_tokens(tokenizer, backbone.language_model))
    packer = Packer(context.targets, context.limits.rows)
    runner = ModelRunner(context.arena, batcher, packer, only_mixed=context.planner.only_mixed)
    mixed = mixes_well(runner, context)
    if not mixed:
        if (base := context.targets.quantised) is not None:
            raise BackboneError(
                f"{backbone.checkpoint.id} cannot generate text on {base.weights} weights",
                found="its mixed steps are not proved to be right",
                fix="give generation a larger cache, or serve with --weights float",
            )
        context = dataclasses.replace(context, lanes=dataclasses.replace(context.lanes, mixes=False))
    use_graphs(runner, context, mixed=mixed)
    runner.rest()
    context.arena.release_active()
    return Generator(context, runner, tokenizer, max_tokens(tokenizer, backbone.config))


def prepare_generation(
    generator: Generator,
    acquired: AcquiredTask | None,
    prompts: Sequence[Prompt],
    samplings: Sequence[Sampling],
    timeout: float | None,
) -> PreparedGeneration:
    """Tokenise and check prompts; `Engine.prepare_generation` says what it raises. acquired: None for the plain
    backbone."""
    ids = _encoded(generator, prompts)
    if acquired is not None and acquired.info.spec.kind != TEXT_GENERATION:
        raise RequestError(f"{acquired.info.reference} generates no text", found=acquired.info.spec.kind)
    return generator.prepare(acquired, ids, samplings, timeout)


def _encoded(generator: Generator, prompts: Sequence[Prompt]) -> list[list[int]]:
    ids: list[list[int]] = []
    for prompt in prompts:  # the tokenizer is free for others in between
        with generator.tokenizer_lock:
            _check_size(generator.tokenizer, prompt, generator.max_tokens)
            ids.append(prompt_ids(generator.tokenizer, prompt))
    return ids


def _check_size(tokenizer: Any, prompt: Prompt, limit: int) -> None:
    """Raise `RequestError` for a prompt of far more than `limit` tokens, before it is tokenised or rendered."""
    if isinstance(prompt, str):
        check_text("the prompt", prompt)
        check_prompt(tokenizer, prompt, limit)
        return
    texts = [text for message in prompt if isinstance(message, Mapping) for text in message.values()]
    said = "\n".join(text for text in texts if isinstance(text, str))
    if said:
        check_text("the prompt", said)
        check_prompt(tokenizer, said, limit)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A text, token ids, or messages (by the chat template, with the opening of an answer); raises `RequestError`.

    Special tokens come from token ids and from the template, never from what a text spells.
    """
    if isinstance(prompt, str):
        check_text("the prompt", prompt)
        return text_ids(tokenizer, prompt, whole=True)
    if not prompt:
        raise RequestError("the prompt is empty", expected="a text, token ids or messages")
    if all(isinstance(token, int) and not isinstance(token, bool) for token in prompt):
        return list(cast("Sequence[int]", prompt))
    return _chat_ids(tokenizer, prompt)


def _chat_ids(tokenizer: Any, messages: Sequence[Any]) -> list[int]:
    try:
        conversation = Conversation(messages, tokenizer)
        text = conversation.render(len(conversation), answer=True)
    except DataError as error:
        raise RequestError(str(error)) from error
    except Exception as error:  # a template may refuse a conversation with any error
        raise RequestError("the chat template refuses these messages", found=str(error)[:300]) from error
    check_text("the prompt", text)
    return conversation.token_ids(text)  # the template writes the special tokens itself
