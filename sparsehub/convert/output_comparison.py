"""A probe batch through two models: do a package and the model that it was extracted from give the same outputs?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone.tokenizer import max_tokens
from sparsehub.package.encoding import Encoded, collate
from sparsehub.package.task_spec import MULTIPLE_CHOICE, TEXT_GENERATION, TOKEN_CLASSIFICATION, TaskSpec

LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # tokens of a probe's sequences, without special ones
TOLERANCE = 1e-4  # of the largest output
PARAMETERS = 500_000_000  # of a backbone up to which a probe is run without being asked for


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of a package are from those of the model that it was extracted from."""

    difference: float  # the largest of an output; infinite where one of them is not a number
    largest: float  # absolute output of the tuned model
    against: str  # how the tuned model was made

    @property
    def relative(self) -> float:
        return self.difference / max(self.largest, 1e-6)

    @property
    def agrees(self) -> bool:
        return self.relative <= TOLERANCE

    @property
    def text(self) -> str:
        """The comparison in words, for reports."""
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{verdict}: outputs of a probe batch are at most {self.difference:.3g} from {self.against}, "
            f"the largest is {self.largest:.3g} (tolerance {TOLERANCE:g} of it)"
        )


def probe_batch(tokenizer: Any, config: Any, task: TaskSpec) -> dict[str, Tensor]:
    """Sequences of known, ordinary tokens in several lengths, padded to one batch; the same at every call."""
    room = min(max_tokens(tokenizer, config), task.max_length) - 2  # special tokens at both ends
    size = min(int(config.get_text_config().vocab_size), len(tokenizer))
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    generator = torch.Generator().manual_seed(0)
    width = len(task.choice_fields) if task.kind == MULTIPLE_CHOICE else 1
    rows = []
    for length in sorted({min(length, max(room, 1)) for length in LENGTHS}):
        drawn = [ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist() for _ in range(width)]
        rows.append(Encoded(tuple(_sequence(ids, tokenizer, config) for ids in drawn)))
    return collate(tokenizer, rows)


def _sequence(ids: list[int], tokenizer: Any, config: Any) -> dict[str, list[int]]:
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    whole = [*([] if first is None else [first]), *ids, *([] if (end := tokenizer.sep_token_id) is None else [end])]
    found = {"input_ids": whole, "attention_mask": [1] * len(whole)}
    if "token_type_ids" in tokenizer.model_input_names:
        kinds = getattr(config, "type_vocab_size", 1)
        found["token_type_ids"] = [int(kinds > 1 and place > len(whole) // 2) for place in range(len(whole))]
    return found


@torch.no_grad()
def outputs(model: nn.Module, batch: Mapping[str, Tensor], task: TaskSpec) -> Tensor:
    """A model's logits for a probe batch, float32, flat; those of padding are left out."""
    logits: Tensor = model.eval()(**batch).logits.float()
    if task.kind in (TOKEN_CLASSIFICATION, TEXT_GENERATION):
        logits = logits[batch["attention_mask"].bool()]
    return logits.flatten()


def agreement(tuned: Tensor, package: Tensor, against: str) -> Agreement:
    """Compare the outputs of the tuned model and of the package for one probe batch."""
    sound = tuned.shape == package.shape and all(bool(found.isfinite().all()) for found in (tuned, package))
    difference = float((tuned - package).abs().max()) if sound else float("inf")
    return Agreement(difference, float(tuned.abs().max()), against)
