from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsehub.backbone.arena import ALIGNMENT_BYTES, Arena, build_arena


class Model(nn.Module):
    """Odd sizes, two dtypes, a scalar and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.linear = nn.Linear(3, 5)
        self.narrow = nn.Linear(3, 3).to(torch.bfloat16)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.output = nn.Linear(3, 7, bias=False)
        self.output.weight = self.embed.weight


@pytest.fixture
def model() -> Model:
    torch.manual_seed(3)
    return Model()


def arena_of(model: nn.Module) -> Arena:
    return build_arena(dict(model.named_parameters(remove_duplicate=False)))


def test_moving_into_the_arena_keeps_every_value(model: Model) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arena = arena_of(model)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert torch.equal(arena.view(name), tensor)
        assert arena.view(name).shape == tensor.shape


def test_a_write_to_a_buffer_is_seen_by_the_module_and_back(model: Model) -> None:
    arena = arena_of(model)
    slot = arena.slots["linear.bias"]
    arena.buffers[torch.float32][slot.offset + 4] = 42.0
    assert model.linear.bias[4].item() == 42.0
    model.narrow.weight.data.fill_(3.0)
    half = arena.slots["narrow.weight"]
    assert arena.buffers[torch.bfloat16][half.offset : half.offset + half.numel].eq(3.0).all()


def test_views_share_the_buffers_storage(model: Model) -> None:
    arena = arena_of(model)
    for name, parameter in model.named_parameters():
        slot = arena.slots[name]
        start = arena.buffers[slot.dtype].data_ptr() + slot.offset * parameter.element_size()
        assert parameter.data_ptr() == start == arena.view(name).data_ptr()
        assert parameter.is_contiguous()


def test_there_is_one_buffer_per_dtype(model: Model) -> None:
    arena = arena_of(model)
    assert set(arena.buffers) == {torch.float32, torch.bfloat16}
    assert arena.nbytes == sum(buffer.numel() * buffer.element_size() for buffer in arena.buffers.values())


def test_tied_parameters_share_a_slot_and_count_once(model: Model) -> None:
    arena = arena_of(model)
    assert arena.slots["output.weight"] == arena.slots["embed.weight"]
    assert model.output.weight is model.embed.weight
    assert arena.numel == sum(parameter.numel() for parameter in model.parameters())


def test_slots_are_aligned_and_do_not_overlap(model: Model) -> None:
    arena = arena_of(model)
    for dtype, buffer in arena.buffers.items():
        step = ALIGNMENT_BYTES // buffer.element_size()
        places = sorted({(s.offset, s.numel) for s in arena.slots.values() if s.dtype == dtype})
        assert all(offset % step == 0 for offset, _ in places)
        ends = [offset + numel for offset, numel in places]
        assert all(end <= start for end, (start, _) in zip(ends, places[1:], strict=False))
        assert ends[-1] <= len(buffer)


def test_the_padding_between_slots_is_zero(model: Model) -> None:
    arena = arena_of(model)
    for dtype, buffer in arena.buffers.items():
        used = torch.zeros(len(buffer), dtype=torch.bool)
        for slot in arena.slots.values():
            if slot.dtype == dtype:
                used[slot.offset : slot.offset + slot.numel] = True
        assert not buffer[~used].any()


def test_a_scalar_parameter_has_a_view_without_dimensions(model: Model) -> None:
    arena = arena_of(model)
    assert arena.view("scale").shape == ()
    assert arena.view("scale").item() == 2.0


def test_the_module_computes_the_same_from_the_arena(model: Model) -> None:
    tokens = torch.tensor([0, 6, 3])
    expected = model.linear(model.embed(tokens)) * model.scale
    arena_of(model)
    assert torch.equal(model.linear(model.embed(tokens)) * model.scale, expected)


@pytest.mark.parametrize("name", ["embed.weight", "narrow.bias", "scale"])
def test_the_digest_changes_with_one_bit_and_comes_back_with_it(model: Model, name: str) -> None:
    arena = arena_of(model)
    before = arena.digest()
    flat = arena.view(name).flatten().view(torch.uint8)
    flat[-2] ^= 1
    assert arena.digest() != before
    flat[-2] ^= 1
    assert arena.digest() == before


def test_the_digest_is_that_of_the_values_not_of_the_object() -> None:
    digests = []
    for _ in range(2):
        torch.manual_seed(3)
        digests.append(arena_of(Model()).digest())
    assert digests[0] == digests[1]
    assert digests[0].startswith("sha256:")
    assert len(digests[0]) == 71
