"""transformers' continuous batching, one step at a time: its paged cache, its scheduler, its packed batches.

Its own manager runs in a thread of its own, and dies with the first request that it cannot run. Here the generator's
thread makes the steps: every request is checked first, the arena is locked for a step, and a cancelled text is out of
the cache before the next one. No page is ever shared: a cached prefix does not know which weights made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import RequestState

from sparsehub.backbone import Backbone
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.decode_graphs import DecodeGraphs
from sparsehub.engine.generation.packing import PackedSpan
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.generation.sampling import SampledToken, Sampler
from sparsehub.engine.generation.step_padding import StepPadding, can_pad
from sparsehub.errors import BackboneError

NO_END = -1


class Batcher:
    """Drives transformers' continuous batching for `ModelRunner`. Not thread-safe. end_tokens: that end a text.

    Raises `BackboneError` for a model that cannot run in continuous batches.
    """

    def __init__(self, backbone: Backbone, limits: GenerationLimits, end_tokens: Sequence[int]):
        self.sampler = Sampler()
        self._model, self.ends = backbone.whole, list(end_tokens)
        self._running: dict[str, Generation] = {}
        self._limits = limits
        self._config, self._device = backbone.config, backbone.device
        self._plain = self._config._attn_implementation
        try:
            manager = ContinuousBatchingManager(backbone.whole, _greedy(), _configuration(limits))
            manager.logit_processor = self.sampler
            self._processor = manager._create_batch_processor()
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise BackboneError(
                f"{backbone.checkpoint.id} cannot run in continuous batches", found=f"{type(error).__name__}: {error}"
            ) from error
        self._processor.output_router = _NoOutput()
        self.graphs: DecodeGraphs | None = None  # where `use_graphs` was called
        self._padding: StepPadding | None = None
        self._paged, self._config._attn_implementation = self._config._attn_implementation, self._plain

    def use_graphs(self) -> DecodeGraphs | None:
        """From here on decode steps are padded and may be CUDA graphs, while those are on, which they are not yet.
        None where this release of transformers pads in another way."""
        if not can_pad(self._processor):
            return None
        self.graphs = DecodeGraphs(self._model, self._device, self._limits.rows)
        self._padding = StepPadding(self._processor, self.graphs, self._limits.rows)
        return self.graphs

    @property
    def padded_rows(self) -> int:
        """Tokens of the step that was prepared, padding included; 0 where it is not padded."""
        return 0 if self._padding is None else self._padding.rows

    @property
    def running(self) -> Sequence[Generation]:
        """The texts that were added and are not done."""
        return list(self._running.values())

    @property
    def pages(self) -> int:
        """Pages of the cache that are in use."""
        cache = self._processor.cache
        if hasattr(cache, "get_num_free_blocks"):  # transformers 5.17
            return self._limits.pages - int(cache.get_num_free_blocks())
        cache.pool.try_to_free_sectors()
        return round((1 - cache.compute_free_capacity()) * self._limits.pages)

    def add(self, generation: Generation) -> None:
        """Add a text; its prompt is run with the next steps."""
        self._running[generation.id] = generation
        state = RequestState(
            request_id=generation.id,
            initial_tokens=list(generation.prompt),
            max_new_tokens=generation.max_tokens,
            eos_token_id=self.ends,
        )
        self._processor.scheduler.add_waiting_request(state)

    def drop(self, generation: Generation) -> None:
        """Take a text out, running or not; its pages are free at once."""
        scheduler = self._processor.scheduler
        if self._running.pop(generation.id, None) is not None:
            scheduler.set_request_cancellation(generation.id)
            scheduler.clear_cancelled_requests()
            self.sampler.forget(generation)

    def prepare(self) -> list[PackedSpan]:
        """The tokens of the next step, those of one task side by side; none where nothing can run."""
        scheduler = self._processor.scheduler
        by_task = sorted(scheduler.active_requests.items(), key=lambda item: str(self._running[item[0]].digest))
        scheduler.active_requests = dict(by_task)  # in this order they are packed: a task's tokens are one segment
        if not self._processor.prepare_next_batch():
            return []
        found = self._processor.inputs_and_outputs.requests_in_batch
        return [PackedSpan(self._running[f.state.request_id], f.query_length, f.has_new_token) for f in found]

    def run(
        self, parts: Sequence[PackedSpan], baked: Hashable | None = ()
    ) -> list[tuple[Generation, int | None, SampledToken | None]]:
        """Run the step that was prepared, with the weights and modules as they are now; the next token of every text
        that has one (None where its logits are no numbers), with its log probabilities where they are wanted. baked: as
        in `PackedBatch`."""
        sampled = [part.generation for part in parts if part.is_sampled]
        self.sampler.generations = sampled
        self._config._attn_implementation = self._paged  # for the step alone: other rows' attention knows no pages
        self._wait_for_weights()
        try:
            self._processor._generation_step(self._stepped(baked))
        finally:
            self._config._attn_implementation = self._plain
        states = [f.state for f in self._processor.inputs_and_outputs.requests_in_batch if f.has_new_token]
        self._processor.update_batch()
        finite = self.sampler.finite
        tokens = [
            state.generated_tokens[-1] if is_number else None for state, is_number in zip(states, finite, strict=True)
        ]
        for state, generation in zip(states, sampled, strict=True):
            if state.status.name == "FINISHED":
                self._running.pop(generation.id, None)
                self.sampler.forget(generation)
        return list(zip(sampled, tokens, self.sampler.chosen, strict=True))

    def _stepped(self, baked: Hashable | None) -> Any:
        """What computes the step: the model, or its graphs."""
        if self.graphs is None:
            return self._model
        self.graphs.baked = baked if self.padded_rows else None
        return self.graphs

    def _wait_for_weights(self) -> None:
        """On a GPU transformers computes on a stream of its own, and it does not wait for what this thread has begun
        before: the switch to a task's weights, and the tokens of the step."""
        stream = getattr(self._processor.inputs_and_outputs, "compute_stream", None)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))


class _NoOutput:
    """Drops what transformers delivers: `Batcher.run` reads each token from its sequence's state."""

    def deliver(self, output: Any) -> None:
        """Drop an output."""

    def deliver_batch(self, outputs: Sequence[Any]) -> None:
        """Drop outputs."""


def _greedy() -> GenerationConfig:
    return GenerationConfig(do_sample=False, eos_token_id=NO_END, pad_token_id=0)


def _configuration(limits: GenerationLimits) -> ContinuousBatchingConfig:
    """transformers' settings. Its older releases call a page a block, and do not switch the attention by themselves."""
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    options = {"page_size" if "page_size" in known else "block_size": limits.page_tokens}
    if "auto_switch_to_flash" in known:
        options["auto_switch_to_flash"] = False
    return ContinuousBatchingConfig(
        num_blocks=limits.pages,
        max_batch_tokens=limits.batch_tokens,
        max_requests_per_batch=limits.rows,
        max_blocks_per_request=0,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        safety_margin=0.0,
        **options,
    )
