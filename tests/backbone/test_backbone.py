from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsehub.backbone import Checkpoint, dtype_named, load_backbone, open_checkpoint
from sparsehub.backbone.backbone import adopt, load_module, refuse_sharded
from sparsehub.errors import BackboneError

SaveTiny = Callable[..., Path]
KINDS = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"]
DECODERS = ("llama", "gpt2")
TOKENS = torch.tensor([[5, 9, 33, 60, 4, 17], [8, 3, 3, 21, 50, 63]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def language_model(kind: str) -> str:
    return "AutoModelForCausalLM" if kind in DECODERS else "AutoModelForMaskedLM"


def states(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=TOKENS, attention_mask=MASK).last_hidden_state


def expected_states(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    from transformers import AutoModel

    return states(AutoModel.from_pretrained(folder, dtype=dtype).eval())


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_computes_what_the_plain_model_computes(save_tiny: SaveTiny, kind: str) -> None:
    folder = save_tiny(kind)
    backbone = load_backbone(str(folder))
    assert torch.equal(states(backbone.module), expected_states(folder))
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_checkpoint_is_in_the_arena_with_its_digest(save_tiny: SaveTiny, kind: str) -> None:
    folder = save_tiny(kind)
    backbone = load_backbone(str(folder))
    stored = load_file(folder / "model.safetensors")
    assert set(backbone.arena.slots) == {name for name, _ in backbone.module.named_parameters()} == set(stored)
    assert dict(backbone.digests) == dict(backbone.checkpoint.digests)
    assert all(torch.equal(backbone.arena.view(name), tensor) for name, tensor in stored.items())
    assert backbone.arena.numel == sum(tensor.numel() for tensor in stored.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("purpose", ["language model", "classifier"])
def test_checkpoints_of_whole_models_load_as_their_base(save_tiny: SaveTiny, kind: str, purpose: str) -> None:
    auto = language_model(kind) if purpose == "language model" else "AutoModelForSequenceClassification"
    folder = save_tiny(kind, auto)
    backbone = load_backbone(str(folder))
    assert torch.equal(states(backbone.module), expected_states(folder))
    stored, prefix = load_file(folder / "model.safetensors"), backbone.module.base_model_prefix + "."
    inside = {name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
    assert (backbone.language_model is not None) == (purpose == "language model" and kind in ("llama", "gpt2"))
    around = {name for name in stored if not name.startswith(prefix)} if backbone.language_model is not None else set()
    assert set(backbone.arena.slots) == set(backbone.digests) == inside | around
    assert all(torch.equal(backbone.arena.view(name), stored[name]) for name in around)
    assert all(backbone.digests[name] == backbone.checkpoint.digests[prefix + name] for name in inside)
    assert all(torch.equal(backbone.arena.view(name), stored[prefix + name]) for name in inside)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_backbone_loads_in_each_dtype(save_tiny: SaveTiny, kind: str, dtype: str) -> None:
    folder = save_tiny(kind)
    backbone = load_backbone(str(folder), dtype=dtype)
    assert backbone.dtype == dtype_named(dtype)
    assert set(backbone.arena.buffers) == {dtype_named(dtype)}
    assert torch.equal(states(backbone.module), expected_states(folder, dtype_named(dtype)))


def test_digests_are_those_of_the_stored_bytes_whatever_the_dtype_it_runs_in(save_tiny: SaveTiny) -> None:
    folder = save_tiny("bert")
    wide, narrow = load_backbone(str(folder)), load_backbone(str(folder), dtype="bfloat16")
    assert wide.digests == narrow.digests
    assert wide.checkpoint.fingerprint == narrow.checkpoint.fingerprint


def test_a_checkpoint_in_many_files_gives_the_same_parameters(save_tiny: SaveTiny) -> None:
    whole = load_backbone(str(save_tiny("bert", folder="whole")))
    folder = save_tiny("bert", folder="parts", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    parts = load_backbone(str(folder))
    assert parts.checkpoint.fingerprint == whole.checkpoint.fingerprint
    assert parts.digests == whole.digests
    assert parts.arena.digest() == whole.arena.digest()


def test_a_parameter_that_the_checkpoint_lacks_stays_outside(save_tiny: SaveTiny) -> None:
    backbone = load_backbone(str(save_tiny("bert", "AutoModelForMaskedLM")))
    outside = {name for name, _ in backbone.module.named_parameters()} - set(backbone.arena.slots)
    assert outside == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_parameter_of_another_shape_stays_outside(save_tiny: SaveTiny) -> None:
    folder = save_tiny("bert")
    stored = load_file(folder / "model.safetensors")
    stored["pooler.dense.bias"] = torch.zeros(7)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(folder))
    assert "pooler.dense.bias" not in backbone.arena.slots
    assert "pooler.dense.weight" in backbone.arena.slots


def test_old_spellings_of_layer_norms_are_found(save_tiny: SaveTiny) -> None:
    folder = save_tiny("bert")
    stored = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor + 0.5
        for name, tensor in stored.items()
    }
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(folder))
    name = "embeddings.LayerNorm.weight"
    assert backbone.digests[name] == backbone.checkpoint.digests["embeddings.LayerNorm.gamma"]
    assert torch.equal(backbone.arena.view(name), stored[name] + 0.5)
    assert len(backbone.arena.slots) == len(stored)


def test_a_tied_parameter_is_in_the_arena_under_both_names(save_tiny: SaveTiny) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(str(save_tiny("gpt2", "AutoModelForCausalLM")))
    model, missing = load_module(AutoModelForCausalLM, checkpoint, dtype="float32", device="cpu")
    backbone = adopt(model, checkpoint, missing)
    assert "lm_head.weight" not in checkpoint.digests
    assert backbone.arena.slots["lm_head.weight"] == backbone.arena.slots["transformer.wte.weight"]
    assert backbone.digest_of("lm_head.weight") == checkpoint.digests["transformer.wte.weight"]
    assert backbone.digest_of("transformer.wpe.weight") == checkpoint.digests["transformer.wpe.weight"]
    assert backbone.arena.numel == sum(parameter.numel() for parameter in model.parameters())


def test_architecture_config_and_device_are_told(save_tiny: SaveTiny) -> None:
    backbone = load_backbone(str(save_tiny("distilbert")))
    assert (backbone.architecture, backbone.config.dim, backbone.device.type) == ("DistilBertModel", 32, "cpu")


def test_an_opened_checkpoint_is_taken_as_it_is(save_tiny: SaveTiny) -> None:
    checkpoint = open_checkpoint(str(save_tiny("gpt2")))
    assert load_backbone(checkpoint).checkpoint is checkpoint


def test_loading_leaves_the_verbosity_of_transformers_alone(save_tiny: SaveTiny) -> None:
    from transformers.utils import logging

    folder = save_tiny("gpt2")
    logging.set_verbosity(logging.INFO)
    try:
        load_backbone(str(folder))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_error()


@pytest.mark.parametrize("name", ["float64", "int8", "fp16", ""])
def test_another_dtype_is_refused(name: str) -> None:
    with pytest.raises(BackboneError, match="float32, float16, bfloat16"):
        dtype_named(name)


def test_a_wrong_dtype_is_refused_when_a_backbone_is_loaded(save_tiny: SaveTiny) -> None:
    with pytest.raises(BackboneError, match="unknown dtype"):
        load_backbone(str(save_tiny("gpt2")), dtype="half")


def test_parameters_without_storage_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(BackboneError, match=r"sharded or not loaded: '1\.weight'"):
        refuse_sharded(model, "half")


def test_parameters_that_are_no_plain_numbers_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("packed", nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(BackboneError, match="'packed' is quantised"):
        refuse_sharded(model, "packed")
    with pytest.raises(BackboneError, match="of an unknown kind"):
        refuse_sharded(nn.Linear(2, 2, dtype=torch.float64), "wide")


def test_a_sharded_tensor_is_refused() -> None:
    class Sharded(torch.Tensor):
        pass

    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(2, 2).as_subclass(Sharded))
    with pytest.raises(BackboneError, match="Sharded"):
        refuse_sharded(model, "shards")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint("other", "", tmp_path, {"elsewhere": "sha256:" + "0" * 64}, "sha256:" + "0" * 64, "float32")
    with pytest.raises(BackboneError, match="matches its checkpoint"):
        adopt(nn.Linear(2, 2), checkpoint, set())


def test_pickled_weights_are_never_loaded(save_tiny: SaveTiny) -> None:
    folder = save_tiny("gpt2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="pickled weights are never read"):
        load_backbone(str(folder))


@pytest.mark.parametrize("config", [None, "{", '{"model_type": "no-such-model"}', "{}"])
def test_a_folder_without_a_usable_configuration_is_refused(save_tiny: SaveTiny, config: str | None) -> None:
    folder = save_tiny("gpt2")
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    with pytest.raises(BackboneError, match="transformers cannot load"):
        load_backbone(str(folder))
