"""The state cache: hidden states of texts at branch points. A text that comes again, for another task, starts there. It
is off where its budget is 0."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.checksum import checksum
from sparsehub.engine.trunk_plan import TRUNK_SLOT, TrunkPlan

Text = Mapping[str, list[int]]  # token ids by the tokenizer's names
log = logging.getLogger("sparsehub")
ENTRY_BYTES = 512  # of an entry besides its states and its text: key, tensor and dictionary


class StateKey(NamedTuple):
    """What hidden states depend on besides the kind of weights, which an engine has one of."""

    backbone: str  # its fingerprint
    layer: int  # whose input they are
    before: int  # tokens of padding before the text, which move its positions
    text: bytes  # token ids, mask and token types (`Encoded.keys`)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return len(self.text) + ENTRY_BYTES


@dataclass(frozen=True)
class _Kept:
    states: Tensor  # [tokens, width] on the backbone's device, without padding
    digest: int


@dataclass(frozen=True)
class StateUsage:
    """What the state cache holds, and what it has done since the start; for metrics."""

    nbytes: int
    texts: int  # kept, once for each layer
    hits: int  # texts of batches whose states were there
    misses: int  # texts that were looked for in vain
    damaged: int  # kept states that were not what they had been, and were computed again


class StateCache:
    """Hidden states by text and layer; what was used least recently makes room. `BatchRunner` takes and keeps, with the
    arena's lock held; `ArenaManager` clears it where it finds the backbone damaged, since what was computed before that
    may be wrong.

    budget: bytes, of states and keys; left: whether texts are padded in front.
    """

    def __init__(self, backbone: Backbone, budget: int, *, left: bool):
        self._fingerprint, self._budget, self._left = backbone.checkpoint.fingerprint, budget, left
        self._kept: OrderedDict[StateKey, _Kept] = OrderedDict()
        self._nbytes = self._hits = self._misses = self._damaged = 0

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._budget > 0

    @property
    def usage(self) -> StateUsage:
        """Bytes and counts; from any thread."""
        return StateUsage(self._nbytes, len(self._kept), self._hits, self._misses, self._damaged)

    def key(self, plan: TrunkPlan[Text], text: int, layer: int) -> StateKey:
        """The key of one of a plan's texts. layer: at whose input."""
        longest = max(len(its["input_ids"]) for its in plan.texts)
        own = plan.keys[text]
        assert isinstance(own, bytes)  # of a batch of tokenised rows
        return StateKey(self._fingerprint, layer, self.span(plan, text, longest).start, own)

    def span(self, plan: TrunkPlan[Text], text: int, length: int) -> slice:
        """Where a row of so many tokens has the text's own ones."""
        tokens = len(plan.texts[text]["input_ids"])
        return slice(length - tokens, length) if self._left else slice(0, tokens)

    def has(self, key: StateKey) -> bool:
        """Whether states are kept; from any thread. Nothing is counted."""
        return key in self._kept

    def take(self, key: StateKey) -> Tensor | None:
        """Kept states [tokens, width], proved to be what was kept; None where there are none."""
        kept = self._kept.get(key)
        if kept is not None and checksum([kept.states]) != kept.digest:
            log.error("kept states of a text in memory are damaged; it runs again")
            self._damaged += 1
            self._drop(key)
            kept = None
        if kept is None:
            self._misses += 1
            return None
        self._hits += 1
        self._kept.move_to_end(key)
        return kept.states

    def keep(self, key: StateKey, states: Tensor) -> None:
        """Keep states [tokens, width], which nobody else may write; not where they are not finite, or more than the
        budget."""
        nbytes = states.nbytes + key.nbytes
        if nbytes > self._budget or not bool(states.isfinite().all()):
            return
        if key in self._kept:
            self._drop(key)
        while self._nbytes + nbytes > self._budget:
            self._drop(next(iter(self._kept)))
        self._kept[key] = _Kept(states, checksum([states]))
        self._nbytes += nbytes

    def clear(self) -> None:
        """Keep nothing of what was kept so far."""
        self._kept.clear()
        self._nbytes = 0

    def _drop(self, key: StateKey) -> None:
        self._nbytes -= self._kept.pop(key).states.nbytes + key.nbytes


class TextStates:
    """The texts of one batch whose states at its first branch point are kept, for `TrunkPass`, which leaves out the
    layers before it for them; and the states that the pass gives, for the cache."""

    def __init__(self, cache: StateCache, plan: TrunkPlan[Text]):
        assert plan.entry is not None  # or nothing of this batch could be kept
        self.entry = plan.entry
        self._cache, self._plan = cache, plan
        found = ((row, cache.take(cache.key(plan, text, self.entry))) for row, text in trunk_rows(plan.stages[0].rows))
        self._known: dict[int, Tensor] = {row: states for row, states in found if states is not None}
        self._fresh: list[tuple[StateKey, Tensor]] = []

    @property
    def known(self) -> Mapping[int, Tensor]:
        """By row of the first stage, its states [tokens, width]."""
        return self._known

    @property
    def missing(self) -> list[int]:
        """The rows of the first stage that have to run."""
        return [row for row in range(len(self._plan.stages[0].rows)) if row not in self._known]

    def completed(self, hidden: Tensor) -> Tensor:
        """The states of all rows of the first stage at the first branch point. hidden: of those that have run."""
        if not self._known:
            return hidden
        rows, missing = self._plan.stages[0].rows, self.missing
        whole = hidden.new_zeros(len(rows), *hidden.shape[1:])
        if missing:
            whole[missing] = hidden
        for row, states in self._known.items():
            whole[row, self._cache.span(self._plan, rows[row][1], hidden.shape[1])] = states
        return whole

    def note(self, layer: int, rows: Sequence[tuple[int, int]], hidden: Tensor) -> None:
        """The states of rows (slot, text) at a branch point, of which `keep` keeps those of the trunk."""
        for row, text in trunk_rows(rows):
            key = self._cache.key(self._plan, text, layer)
            if not self._cache.has(key):
                its = self._cache.span(self._plan, text, hidden.shape[1])
                self._fresh.append((key, hidden[row, its].clone()))

    def keep(self) -> None:
        """Hand what was noted to the cache, once the pass has ended well."""
        for key, states in self._fresh:
            self._cache.keep(key, states)


def trunk_rows(rows: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(row, text) of those that run on the base weights."""
    return ((row, text) for row, (slot, text) in enumerate(rows) if slot == TRUNK_SLOT)
