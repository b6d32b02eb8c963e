"""Tiny checkpoints whose weights are quantised, for tests: fp8 by its formula, the others by their libraries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, CONFIG, GGUF_NAME = "model.safetensors", "config.json", "tiny-q8_0.gguf"
BLOCK = 16  # rows and columns that share a scale
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
_FOUR_BITS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": BLOCK},
        }
    },
}


def save_quantised(method: str, plain: Path, folder: Path) -> None:
    """Write the checkpoint `plain` quantised by `method` to the new `folder`, with its tokenizer.

    method: one of `NEEDS`, with its libraries installed. gguf takes a Llama, the others any.
    """
    shutil.copytree(plain, folder)
    _MAKERS[method](folder)


# The modules that a method needs beside transformers.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "fp8": ("accelerate",),
    "bitsandbytes-4": ("accelerate", "bitsandbytes"),
    "bitsandbytes-8": ("accelerate", "bitsandbytes"),
    "torchao": ("torchao",),
    "compressed-tensors": ("compressed_tensors",),
    "gguf": ("accelerate", "gguf"),
}


def _to_fp8(folder: Path) -> None:
    """A scale for each block, as DeepSeek-V3 and Qwen3-FP8 have it."""
    stored = load_file(folder / WEIGHTS)
    for name, tensor in list(stored.items()):
        if is_linear(name, tensor):
            stored[name], stored[f"{name}_scale_inv"] = in_fp8(tensor)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    edit_config(folder, quantization_config=_FP8)


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether a stored tensor is the weight of a linear layer."""
    return tensor.dim() == 2 and "embed" not in name and name.endswith(".weight")


def in_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """fp8 values, and the scale of each block of 16 x 16, by which they are multiplied."""
    rows, columns = weight.shape
    blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    values = blocks / scales[:, None, :, None]
    return values.view(rows, columns).to(torch.float8_e4m3fn), scales


def from_fp8(values: Tensor, scales: Tensor) -> Tensor:
    """The formula: every value times the scale of its block, in float32."""
    return values.float() * scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def _to_four_bits(folder: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme: Any = QuantizationScheme(**_FOUR_BITS["config_groups"]["group_0"])  # type: ignore[index]
    compressor = BaseCompressor.get_value_from_registry(_FOUR_BITS["format"])
    stored = load_file(folder / WEIGHTS)
    for name, tensor in list(stored.items()):
        if is_linear(name, tensor):
            scales = tensor.view(len(tensor), -1, BLOCK).abs().amax(2) / 7
            packed = compressor.compress({"weight": stored.pop(name), "weight_scale": scales}, scheme)
            module = name.removesuffix("weight")
            stored |= {module + key: value.contiguous() for key, value in packed.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    edit_config(folder, quantization_config=_FOUR_BITS)


def _by_transformers(settings: Callable[[], Any]) -> Callable[[Path], None]:
    def quantise(folder: Path) -> None:
        import transformers

        model = transformers.AutoModel.from_pretrained(folder, quantization_config=settings(), dtype=torch.float32)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder)

    return quantise


def _bits_and_bytes(**settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**settings)

    return make


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _to_gguf(folder: Path) -> None:
    """8 bits in blocks of 32, as llama.cpp writes a Llama: the rows of query and key are in another order there."""
    import gguf
    import transformers

    torch.manual_seed(7)  # of the output layer, which a base model lacks
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(folder / GGUF_NAME, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, folder)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        count = next((heads[part] for part in name.split(".") if part in heads), 0)
        values = _reordered(tensor, count).contiguous().numpy() if count else tensor.numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / WEIGHTS).unlink()
    (folder / CONFIG).unlink()


def _add_tokenizer(writer: Any, folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[part]}.weight"
    return f"{_GGUF_NAMES[module]}.weight"


def _reordered(weight: Tensor, heads: int) -> Tensor:
    """The two halves of each head's rows, one row of each in turn."""
    return weight.view(heads, 2, len(weight) // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


_MAKERS: Mapping[str, Callable[[Path], None]] = {
    "fp8": _to_fp8,
    "bitsandbytes-4": _by_transformers(
        _bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    ),
    "bitsandbytes-8": _by_transformers(_bits_and_bytes(load_in_8bit=True)),
    "torchao": _by_transformers(_torchao),
    "compressed-tensors": _to_four_bits,
    "gguf": _to_gguf,
}


def loaded_by_transformers(method: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The quantised model as transformers itself loads and runs it."""
    import transformers

    option = {"gguf_file": GGUF_NAME} if method == "gguf" else {}
    return transformers.AutoModel.from_pretrained(folder, dtype=dtype, **option).eval()


def dequantised_by_transformers(method: str, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights in floats as transformers makes them of the quantised ones, or as the library's own tensor does."""
    import transformers

    if method == "fp8":
        asked: Any = transformers.FineGrainedFP8Config(dequantize=True)
    elif method == "compressed-tensors":
        asked = transformers.CompressedTensorsConfig(dequantize=True)
    else:
        model: Any = loaded_by_transformers(method, folder, dtype)
        model = model.dequantize(dtype) if method.startswith("bitsandbytes") else model
        return {name: _own(p.data).to(dtype) for name, p in model.named_parameters()}
    model = transformers.AutoModel.from_pretrained(folder, quantization_config=asked, dtype=dtype)
    return {name: parameter.data for name, parameter in model.named_parameters()}


def _own(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) is Tensor else tensor.dequantize()


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of a checkpoint's configuration."""
    table = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**table, **changes}))


def edit_tensor(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Replace one stored tensor by `change(tensor)`; the file's metadata stays."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    stored = load_file(folder / WEIGHTS)
    stored[name] = change(stored[name])
    save_file(stored, folder / WEIGHTS, metadata=metadata)
