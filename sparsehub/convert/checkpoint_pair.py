"""CheckpointPair: a backbone and a checkpoint that was fine-tuned from it, tensors matched by name, for `extract`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.backbone import read_config
from sparsehub.backbone.configuration import computed_with
from sparsehub.convert.name_matching import SHOWN, CheckpointLayout, Matched, match_layout
from sparsehub.convert.tensor_reader import TensorReader, refuse_quantised, stored_tensors
from sparsehub.convert.wrapped_names import unwrapped, wrapper_note
from sparsehub.errors import BackboneError, BackboneMismatchError
from sparsehub.package.manifest import BackboneRef
from sparsehub.package.manifest_builder import public_name

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BITS = {4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class TensorPair:
    """One parameter of the backbone in both checkpoints; read piece by piece."""

    base: TensorReader
    tuned: TensorReader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tuned.shape

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Both tensors in pieces of equal length, flat, each in its own dtype."""
        return zip(self.base.pieces(), self.tuned.pieces(), strict=True)

    def changes(self) -> Iterator[Tensor]:
        """tuned - base in float32, in pieces."""
        return (tuned.float() - base.float() for base, tuned in self.pieces())

    def differing(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Flat positions where the bits differ once the base has the tuned dtype, and the tuned values there."""
        start = 0
        for base, tuned in self.pieces():
            bits = _BITS[tuned.itemsize]
            places = torch.nonzero(base.to(tuned.dtype).view(bits) != tuned.view(bits)).flatten()
            yield places + start, tuned[places]
            start += len(tuned)


@dataclass(frozen=True)
class BackboneTensors:
    """The parameters of a layout that a backbone's checkpoint has, each stored tensor once."""

    checkpoint: Checkpoint
    layout: CheckpointLayout
    names: Mapping[str, str]  # parameter name to stored name
    missing: tuple[str, ...]  # names, in the task's model, of those that it lacks: they belong to the head

    @property
    def reference(self) -> BackboneRef:
        """How a manifest names the backbone."""
        checkpoint = self.checkpoint
        return BackboneRef(
            public_name(checkpoint.id),
            checkpoint.revision,
            self.layout.architecture,
            checkpoint.dtype,
            checkpoint.fingerprint,
            sum(math.prod(self.layout.base[name]) for name in self.names),
        )

    @property
    def configuration(self) -> dict[str, object]:
        """What the backbone computes with, of its configuration, by field."""
        return computed_with(read_config(self.checkpoint))

    def digest_of(self, name: str) -> str:
        """The digest of the stored tensor of a parameter."""
        return self.checkpoint.digests[self.names[name]]

    @property
    def head(self) -> tuple[str, ...]:
        """Every parameter of the task's model that the backbone's checkpoint lacks."""
        return (*self.missing, *self.layout.others)


def backbone_tensors(layout: CheckpointLayout, checkpoint: Checkpoint) -> BackboneTensors:
    """Find a layout's parameters in a backbone's checkpoint; raises `BackboneError` where there are none, and
    for a quantised one."""
    refuse_quantised(checkpoint)
    matched = match_layout(layout, checkpoint.digests, checkpoint.id)
    names = {name: place for name in layout.base if (place := _place(layout, matched, name))}
    lacking = tuple(layout.prefix + name for name in layout.base if name not in names)
    # What a base model has and its checkpoint lacks, a pooler, is read by no head that stands on its states.
    return BackboneTensors(checkpoint, layout, names, lacking if layout.prefix else ())


@dataclass(frozen=True)
class CheckpointPair:
    """The tensors of a fine-tuned checkpoint, each beside the backbone's or in the head."""

    parameters: Mapping[str, TensorPair]  # the backbone's, by name
    head: Mapping[str, TensorReader]  # the task's own, by their names in its model
    unused: tuple[str, ...]  # tensors of the tuned checkpoint that the user allowed to leave out
    notes: tuple[str, ...] = ()  # what was unusual about the tuned checkpoint's names, for the report

    @property
    def value_dtype(self) -> str:
        """The dtype of the tuned checkpoint's backbone; raises `BackboneError` where it has several."""
        found = {both.tuned.entry.dtype for both in self.parameters.values()}
        if len(found) > 1:
            raise BackboneError(
                "the fine-tuned checkpoint stores its backbone in several dtypes, and `set` values have one",
                found=", ".join(sorted(_NAMES.get(d, d) for d in found)),
                fix="save it in one dtype, or give --density for a rounded `add` delta",
            )
        return _NAMES[found.pop()]


def pair_up(backbone: BackboneTensors, tuned: Checkpoint, drop: Sequence[str]) -> CheckpointPair:
    """Match every tensor of `tuned` with the backbone's or the head's, or refuse it by name.

    drop: shell patterns of tuned tensors that may be left out, another head for instance.
    Raises `BackboneError` and `BackboneMismatchError`.
    """
    layout = backbone.layout
    here = stored_tensors(backbone.checkpoint.folder)
    there, wrappers = unwrapped(stored_tensors(tuned.folder), tuned.id, (*layout.base, *layout.others))
    theirs = match_layout(layout, there, tuned.id)
    parameters = {}
    for name, place in backbone.names.items():
        other = _place(layout, theirs, name)
        if other is None:
            raise _lacks(tuned, f"the backbone's {name!r}")
        parameters[name] = TensorPair(here[place], there[other])
    places = _head_places(backbone, theirs, there, tuned)
    ties = _tied(layout, theirs, there, tuned)
    used = {*theirs.names.values(), *places.values(), *ties}
    head = {name: there[place] for name, place in places.items()}
    pair = CheckpointPair(parameters, head, _unused(there, used, drop, tuned), wrapper_note(wrappers))
    _check(pair, layout)
    return pair


def _place(layout: CheckpointLayout, matched: Matched, name: str) -> str | None:
    """The stored name of a parameter: its own, or that of one that is tied to it."""
    return next((matched.names[n] for n in (name, *layout.aliases[name]) if n in matched.names), None)


def _tied(layout: CheckpointLayout, theirs: Matched, there: Mapping[str, TensorReader], tuned: Checkpoint) -> set[str]:
    """Where a tied parameter is stored once more; raises `BackboneError` where it has other values there."""
    outside = theirs.prefix.removesuffix(layout.prefix)
    found = set()
    for name, aliases in layout.aliases.items():
        own = theirs.names.get(name)
        for place in {before + alias for alias in aliases for before in (theirs.prefix, outside)} & there.keys():
            if own is not None and not _same(there[own], there[place]):
                raise BackboneError(
                    f"{tuned.id} has other values in {place!r} than in {own!r}, which this backbone keeps as one",
                    fix="give the backbone that it was tuned from, with tie_word_embeddings as it was then",
                )
            found.add(place)
    return found


def _same(first: TensorReader, second: TensorReader) -> bool:
    if first.shape != second.shape or first.entry.dtype != second.entry.dtype:
        return False
    return all(torch.equal(a, b) for a, b in zip(first.pieces(), second.pieces(), strict=True))


def _head_places(
    backbone: BackboneTensors, theirs: Matched, there: Mapping[str, TensorReader], tuned: Checkpoint
) -> dict[str, str]:
    """The stored names of everything that the task's model has and the backbone's checkpoint lacks."""
    prefix = backbone.layout.prefix
    around = theirs.prefix.removesuffix(prefix)  # the prefix of all names of the task's model
    places = {}
    for name in backbone.head:
        inside = name in backbone.missing
        places[name] = theirs.prefix + name.removeprefix(prefix) if inside else around + name
        if places[name] not in there:
            raise _lacks(tuned, f"the head's {name!r}")
    return places


def _lacks(tuned: Checkpoint, what: str) -> BackboneError:
    return BackboneError(
        f"{tuned.id} lacks {what}",
        fix="give the checkpoint as it was saved after fine-tuning, with the kind of task that it was tuned for",
    )


def _unused(
    there: Mapping[str, TensorReader], used: Collection[str], drop: Sequence[str], tuned: Checkpoint
) -> tuple[str, ...]:
    left = sorted(name for name, stored in there.items() if name not in used and stored.entry.dtype in _DTYPES)
    extra = [name for name in left if not any(fnmatchcase(name, pattern) for pattern in drop)]
    if extra:
        more = f" and {len(extra) - SHOWN} more" if len(extra) > SHOWN else ""
        raise BackboneError(
            f"{tuned.id} holds tensors that neither the backbone nor the task's head has",
            found=", ".join(extra[:SHOWN]) + more,
            fix=f"leave them out with --drop '{extra[0]}' (patterns may hold *), or give the right --kind",
        )
    return tuple(left)


def _check(pair: CheckpointPair, layout: CheckpointLayout) -> None:
    wanted = {**layout.base, **layout.others}
    for name, both in pair.parameters.items():
        _check_shape(name, both.base, wanted[name])
        _check_shape(name, both.tuned, wanted[name])
    for name, stored in pair.head.items():
        _check_shape(name, stored, wanted.get(name) or wanted[name.removeprefix(layout.prefix)])


def _check_shape(name: str, stored: TensorReader, shape: tuple[int, ...]) -> None:
    if stored.shape != shape or stored.entry.dtype not in _DTYPES:
        raise BackboneMismatchError(
            f"{name!r} in {stored.path.name} is not what this backbone and task have there",
            found=f"{stored.entry.dtype} {list(stored.shape)}",
            expected=f"F32, F16 or BF16 {list(shape)}",
            fix="a vocabulary that was resized, or another number of labels, cannot be a sparse change",
        )
