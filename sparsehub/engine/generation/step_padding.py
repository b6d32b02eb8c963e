"""Padding of decode steps to a few sizes, so that one captured graph serves many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsehub.engine.generation.decode_graphs import DecodeGraphs
from sparsehub.engine.rounding import power_of_two

SHORTEST = 256  # keys that a padded step reads, at least, those of its own tokens among them


class StepPadding:
    """Pads the steps of transformers' continuous batching in which every text has one token, where a `Batcher` uses
    graphs; all others stay as long as they are.

    transformers can pad steps itself, but prompts as well and to sizes of its own. Its inputs take the padding here:
    tokens and cached keys beyond the real ones read and write places of the cache that no text has, and are masked.
    """

    def __init__(self, processor: Any, graphs: DecodeGraphs, most_rows: int):
        self.rows = 0  # tokens of the step that was prepared last, padding included; 0 where it was not padded
        self._graphs, self._most_rows = graphs, most_rows
        self._runner, self._inputs = processor.model_runner, processor.inputs_and_outputs
        self._most_cached = self._inputs.read_index_storage.shape[-1] - processor.cache.max_batch_tokens
        self._prepare = self._inputs.prepare_batch_tensors
        self._inputs.prepare_batch_tensors = self._prepare_padded
        self._runner.maybe_pad_inputs = _as_they_are

    def _prepare_padded(
        self,
        requests_in_batch: Sequence[Any],
        logits_processors: Any,
        use_decode_fast_path: bool,
        num_q_tokens: int,
        max_kv_read: int,
        use_padding: bool,  # noqa: ARG002
    ) -> None:
        """Stands for transformers' `prepare_batch_tensors`."""
        decodes = all(request.query_length == 1 and request.has_new_token for request in requests_in_batch)
        padded = self._graphs.on and decodes and max_kv_read > 0
        if padded:
            num_q_tokens = min(power_of_two(num_q_tokens), self._most_rows)
            # the keys of both together have a round number: attention is fastest so
            max_kv_read = min(padded_keys(max_kv_read + num_q_tokens) - num_q_tokens, self._most_cached)
        self._prepare(
            requests_in_batch, logits_processors, use_decode_fast_path, num_q_tokens, max_kv_read, use_padding=padded
        )
        self.rows, self._runner.pad_inputs = num_q_tokens if padded else 0, padded
        if padded:
            self._bound_lengths(num_q_tokens + max_kv_read)

    def _bound_lengths(self, most: int) -> None:
        """The length of the longest text is an argument of some launches: the same for all steps of one size."""
        for name in ("max_length_k", "max_seqlen_k"):  # transformers 5.17 has the second
            if hasattr(self._inputs, name):
                setattr(self._inputs, name, dict.fromkeys(getattr(self._inputs, name), most))


def can_pad(processor: Any) -> bool:
    """Whether this release of transformers has what `StepPadding` leans on."""
    inputs, runner = getattr(processor, "inputs_and_outputs", None), getattr(processor, "model_runner", None)
    wanted = ((inputs, "prepare_batch_tensors"), (inputs, "read_index_storage"), (runner, "maybe_pad_inputs"))
    return hasattr(runner, "pad_inputs") and all(hasattr(part, name) for part, name in wanted)


def padded_keys(count: int) -> int:
    """To how many keys a step that reads so many is padded: four sizes from one power of two to the next."""
    step = max(SHORTEST, power_of_two(count) // 8)
    return -(-count // step) * step


def _as_they_are(num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool) -> tuple[int, int]:  # noqa: ARG001
    """Stands for transformers' `maybe_pad_inputs`."""
    return num_q_tokens, max_kv_read
