"""Sampling: the next token of every text of a step, each by its own settings, and its log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from sparsehub.engine.generation.request import Generation

MASKED = float("-inf")


@dataclass(frozen=True)
class SampledToken:
    """The probabilities of a token that was chosen, where its text wants them."""

    logprob: float  # of the token, at temperature 1
    top: tuple[tuple[int, float], ...]  # the likeliest tokens in its place, each with its log probability


class Sampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Takes the place of transformers' logits processors in a `Batcher`; the largest of what it returns is chosen.

    A token is drawn by adding Gumbel noise to the logits. Every text has a random generator of its own, so it depends
    on its seed alone and not on what runs beside it.
    """

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.generations: Sequence[Generation] = ()  # whose rows the next logits are, in order; set before a step
        self.chosen: list[SampledToken | None] = []  # of each, after the step; None where no probabilities are wanted
        self.finite: list[bool] = []  # of each, after the step: whether a token could be chosen at all
        self._draws: dict[str, torch.Generator] = {}  # by the text's id

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:  # noqa: ARG002
        """Logits whose largest entry in each row is the token that is chosen. scores: [texts, vocabulary] float32."""
        shaped, self.chosen = scores, [None] * len(self.generations)
        # NaN and infinity win every maximum; minus infinity alone is a token that cannot come
        self.finite = scores.amax(-1).isfinite().tolist()[: len(self.generations)]
        for row, generation in enumerate(self.generations):
            sampling = generation.sampling
            if not self.finite[row]:
                continue
            if sampling.temperature > 0:
                shaped = shaped.clone() if shaped is scores else shaped
                shaped[row] = self._shaped(scores[row], generation)
            if sampling.logprobs is not None:
                self.chosen[row] = _probabilities(scores[row], int(shaped[row].argmax()), sampling.logprobs)
        return shaped

    def forget(self, generation: Generation) -> None:
        """Drop the random generator of a text that is done."""
        self._draws.pop(generation.id, None)

    def _shaped(self, logits: Tensor, generation: Generation) -> Tensor:
        sampling = generation.sampling
        scaled = logits / sampling.temperature
        if sampling.top_p < 1:
            scaled = _nucleus(scaled, sampling.top_p)
        return scaled + self._gumbel(len(logits), generation, logits.device)

    def _gumbel(self, count: int, generation: Generation, device: torch.device) -> Tensor:
        draw = self._draws.get(generation.id)
        if draw is None:
            draw = self._draws[generation.id] = torch.Generator(device)
            if generation.sampling.seed is None:
                draw.seed()
            else:
                draw.manual_seed(generation.sampling.seed)
        return -torch.empty(count, device=device).exponential_(generator=draw).log()


def _nucleus(logits: Tensor, share: float) -> Tensor:
    """The likeliest tokens that together hold `share` of the probability; always one at least."""
    ordered, places = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1)
    before[0] = 0.0
    return logits.index_fill(0, places[before >= share], MASKED)


def _probabilities(logits: Tensor, token: int, count: int) -> SampledToken:
    logs = logits.log_softmax(-1)
    values, places = logs.topk(min(count, len(logs)))
    return SampledToken(float(logs[token]), tuple(zip(places.tolist(), values.tolist(), strict=True)))
