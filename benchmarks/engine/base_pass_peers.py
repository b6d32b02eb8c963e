"""What else runs one model on a CPU: each peer as a function that builds its forward, for `base_pass`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[dict[str, Tensor]], Tensor]  # a batch to its states, [rows, tokens, width]
Build = Callable[[Any, Path], Forward]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def torch_compile(model: Any, _: Path) -> Forward:
    """Inductor, in this process, for any number of rows and tokens."""
    compiled = torch.compile(model, dynamic=True)
    run: Forward = lambda batch: compiled(**batch).last_hidden_state  # noqa: E731
    with torch.inference_mode():
        run(_example(3, 24))
    return run


def torch_int8(model: Any, _: Path) -> Forward:
    """torch's own dynamic quantisation of all Linear maps."""
    quantised: Any = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    return lambda batch: quantised(**batch).last_hidden_state


def onnx_float(model: Any, folder: Path) -> Forward:
    """ONNX Runtime on a graph whose attention, GELU and norms are fused."""
    return _session(_fused(model, folder))


def onnx_int8(model: Any, folder: Path) -> Forward:
    """ONNX Runtime's dynamic quantisation, a scale for each output; 7 bits where the processor has no VNNI."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "int8.onnx"
    reduced = not torch.cpu._is_vnni_supported()
    quantize_dynamic(
        _fused(model, folder),
        path,
        per_channel=True,
        reduce_range=reduced,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # fused operators tell no types
    )
    return _session(path)


def openvino_float(model: Any, folder: Path) -> Forward:
    """OpenVINO on the exported graph, for latency."""
    import openvino

    threads = torch.get_num_threads()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(_exported(model, folder), "CPU", options)
    return lambda batch: torch.from_numpy(compiled({name: tensor.numpy() for name, tensor in batch.items()})[0])


PEERS: Mapping[str, tuple[str, Build]] = {
    "torch.compile, float32": ("float32", torch_compile),
    "ONNX Runtime, float32": ("float32", onnx_float),
    "OpenVINO, float32": ("float32", openvino_float),
    "ONNX Runtime, int8": ("int8", onnx_int8),
    "torch dynamic int8": ("int8", torch_int8),
}


class _Positional(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        states: Tensor = self.model(**dict(zip(INPUTS, tensors, strict=True))).last_hidden_state
        return states


def _exported(model: Any, folder: Path) -> Path:
    import onnx  # noqa: F401  what the exporter needs, by name

    path = folder / "model.onnx"
    if not path.exists():
        axes = {name: {0: "rows", 1: "tokens"} for name in (*INPUTS, "states")}
        torch.onnx.export(
            _Positional(model).eval(),  # or the export would leave dropout on
            tuple(_example(2, 8).values()),
            str(path),
            input_names=list(INPUTS),
            output_names=["states"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return path


def _fused(model: Any, folder: Path) -> Path:
    from onnxruntime.transformers import optimizer

    path, config = folder / "fused.onnx", model.config
    if not path.exists():
        exported = str(_exported(model, folder))
        made = optimizer.optimize_model(
            exported, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
        )
        made.save_model_to_file(str(path))
    return path


def _session(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(
        session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0]
    )


def _example(rows: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.ones(rows, tokens, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
