"""Checkpoints that come quantised, from loading to serving: plain float weights, under an identity of their own.

fp8 needs no more than other tests do; the other methods run where their libraries are, which
pip install 'sparsehub[quantised]' brings.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsehub.backbone import load_backbone, open_checkpoint
from sparsehub.backbone.backbone import reload
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.engine import Engine, Task
from sparsehub.errors import BackboneError, BackboneMismatchError, MissingExtraError
from sparsehub.package import Package, read_manifest, read_package
from sparsehub.package.materialize import materialize
from sparsehub.package.reader import check_backbone
from sparsehub.training import TrainConfig, train
from tests.support.quantised_checkpoints import (
    GGUF_NAME,
    NEEDS,
    WEIGHTS,
    dequantised_by_transformers,
    edit_config,
    edit_tensor,
    from_fp8,
    is_linear,
    loaded_by_transformers,
    save_quantised,
)
from tests.support.tiny_tasks import TinyTasks, flat

TinyCheckpoint = Callable[[str], Path]
Quantised = Callable[..., Path]
TOKENS = torch.tensor([[5, 9, 33, 60, 4, 17], [8, 3, 3, 21, 50, 63]])
TEXTS = ["a good film", "the king of spain met angela in berlin", "what a boring slow and awful story"]
SCALE = "encoder.layer.0.output.dense.weight_scale_inv"
# Between the answers of the quantised layers and those of floats: 8-bit products of bitsandbytes round their input.
TOLERANCE = {"bitsandbytes-8": 0.5, "torchao": 1e-3}


@pytest.fixture(scope="session")
def quantised(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """quantised(method): the folder of a tiny checkpoint, skipped where a library is missing. Do not change it."""
    made: dict[str, Path] = {}

    def checkpoint(method: str) -> Path:
        missing = [module for module in NEEDS[method] if importlib.util.find_spec(module) is None]
        if missing:
            pytest.skip(f"{method} needs {', '.join(missing)}: pip install 'sparsehub[quantised]'")
        if method not in made:
            made[method] = tmp_path_factory.mktemp("quantised") / method
            save_quantised(method, tiny_checkpoint("llama" if method == "gguf" else "bert"), made[method])
        return made[method]

    return checkpoint


@pytest.fixture
def copy_of_fp8(quantised: Quantised, tmp_path: Path) -> Path:
    """A copy of the fp8 checkpoint that a test may change."""
    return shutil.copytree(quantised("fp8"), tmp_path / "copy")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", NEEDS)
def test_the_arena_holds_the_weights_that_transformers_makes_of_the_quantised_ones(
    quantised: Quantised, method: str, dtype: str
) -> None:
    folder = quantised(method)
    backbone = load_backbone(folder, dtype=dtype)
    expected = dequantised_by_transformers(method, folder, getattr(torch, dtype))
    found = {name: parameter.data for name, parameter in backbone.module.named_parameters()}
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name].to(found[name].dtype))] == []
    assert set(backbone.arena.buffers) == {getattr(torch, dtype)}
    assert {type(tensor) for tensor in found.values()} == {Tensor}
    inside = set(backbone.arena.slots)
    assert set(backbone.parameters) == inside, "every parameter is in the arena"


def test_fp8_weights_are_the_values_times_the_scales_of_their_blocks(quantised: Quantised) -> None:
    stored = load_file(quantised("fp8") / WEIGHTS)
    backbone = load_backbone(quantised("fp8"))
    scaled = [name for name in backbone.arena.slots if f"{name}_scale_inv" in stored]
    assert len(scaled) == 13, "six in each layer, and the pooler's"
    for name in scaled:
        assert torch.equal(backbone.arena.view(name), from_fp8(stored[name], stored[f"{name}_scale_inv"]))


@pytest.mark.parametrize("method", NEEDS)
def test_answers_are_those_of_the_quantised_model(quantised: Quantised, method: str) -> None:
    backbone = load_backbone(quantised(method))
    expected = loaded_by_transformers(method, quantised(method))(input_ids=TOKENS).last_hidden_state.detach()
    found = backbone.module(input_ids=TOKENS).last_hidden_state.detach()
    assert float((found - expected).abs().max()) <= TOLERANCE.get(method, 1e-4)


@pytest.mark.parametrize("method", NEEDS)
def test_a_checkpoint_says_how_it_is_quantised_and_each_parameter_stands_for_all_of_it(
    quantised: Quantised, method: str
) -> None:
    backbone = load_backbone(quantised(method))
    checkpoint = backbone.checkpoint
    assert checkpoint.quantised == method.removesuffix("-4").removesuffix("-8")
    assert set(backbone.digests.values()) == {checkpoint.fingerprint}
    assert open_checkpoint(str(quantised(method))).fingerprint == checkpoint.fingerprint
    assert (backbone.language_model is not None) == (method == "gguf")


@pytest.mark.parametrize("method", NEEDS)
def test_tasks_are_served_by_swap_and_mixed_with_the_answers_of_plain_transformers(
    quantised: Quantised, method: str, tmp_path: Path
) -> None:
    tasks = TinyTasks(quantised(method), tmp_path)
    packages = [tasks.write(name, seed=seed) for seed, name in enumerate(("one", "two"))]
    for package in packages:
        config = json.loads((tasks.materialised(package) / "config.json").read_text())
        assert not [name for name in config if "quant" in name], "plain floats"
    for mode in ("swap", "mixed"):
        engine = Engine(load_backbone(quantised(method)), mode=mode)
        for package in packages:
            manifest = read_manifest(package)
            engine.register(Task(manifest.name, manifest.version, manifest.digest, partial(read_package, package)))
        for package in packages:
            handle = engine.classify(read_manifest(package).name, TEXTS)
            while engine.waiting:
                engine.step(0.05)
            for text, answer in zip(TEXTS, handle.results(), strict=True):
                assert flat(answer) == pytest.approx(tasks.reference(package)(text), abs=1e-4)
        engine.stop(drain=5)


def test_a_package_is_trained_on_a_quantised_checkpoint_and_names_it(quantised: Quantised, tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS[:2] * 4, ["good", "plain"] * 4, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(tmp_path / "rows.jsonl")
    small: dict[str, Any] = {"density": 0.02, "calibration_batches": 1, "epochs": 1, "batch_size": 4, "device": "cpu"}
    config = TrainConfig(
        backbone=str(quantised("fp8")),
        kind="text-classification",
        name="tiny",
        train=source,
        validation=source,
        out=str(tmp_path / "out"),
        text="text",
        max_length=24,
        learning_rate=1e-2,
        head="transformers",
        **small,
    )
    package = read_package(train(config).folder)
    backbone = load_backbone(quantised("fp8"))
    assert package.manifest.backbone.fingerprint == backbone.checkpoint.fingerprint
    assert package.delta.nnz > 0
    check_backbone(package.manifest, backbone)
    materialize(package, backbone.checkpoint, tmp_path / "plain")
    stored = load_file(tmp_path / "plain" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_a_damaged_arena_is_read_again(quantised: Quantised) -> None:
    backbone = load_backbone(quantised("fp8"))
    before = backbone.arena.digest()
    next(iter(backbone.arena.buffers.values())).add_(1)
    reload(backbone)
    assert backbone.arena.digest() == before


def package_for(folder: Path, root: Path) -> Package:
    return read_package(TinyTasks(folder, root).write("made"))


@pytest.mark.parametrize("first", ["plain", "fp8"])
def test_a_package_of_the_floats_does_not_run_on_the_quantised_ones_nor_the_other_way_round(
    quantised: Quantised, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, first: str
) -> None:
    folders = {"plain": tiny_checkpoint("bert"), "fp8": quantised("fp8")}
    package = package_for(folders.pop(first), tmp_path)
    with pytest.raises(BackboneMismatchError, match=r"made for another backbone.*load the checkpoint that the package"):
        check_backbone(package.manifest, load_backbone(folders.popitem()[1]))


CHANGES: dict[str, Callable[[Path], None]] = {
    "a scale": lambda folder: edit_tensor(folder, SCALE, lambda scale: scale * 1.01),
    "a setting": lambda folder: edit_config(
        folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]}
    ),
    "nothing but a label": lambda folder: edit_config(folder, id2label={"0": "a"}, label2id={"a": 0}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_scale_or_setting_is_another_backbone(
    quantised: Quantised, copy_of_fp8: Path, tmp_path: Path, what: str
) -> None:
    package = package_for(quantised("fp8"), tmp_path)
    CHANGES[what](copy_of_fp8)
    other, same = load_backbone(copy_of_fp8), "label" in what
    assert (other.checkpoint.fingerprint == package.manifest.backbone.fingerprint) == same
    if same:
        check_backbone(package.manifest, other)
        return
    with pytest.raises(BackboneMismatchError):
        check_backbone(package.manifest, other)


def test_floats_beside_the_quantised_ones_take_the_dtype_that_is_asked_for(copy_of_fp8: Path) -> None:
    edit_tensor(copy_of_fp8, "encoder.layer.0.output.LayerNorm.weight", lambda weight: weight.bfloat16())
    edit_tensor(copy_of_fp8, SCALE, lambda scale: scale.bfloat16())
    assert set(load_backbone(copy_of_fp8).arena.buffers) == {torch.float32}


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "quanto", "mxfp4", "a-new-one"])
def test_a_method_that_is_not_dequantised_is_refused_with_what_to_take(copy_of_fp8: Path, method: str) -> None:
    edit_config(copy_of_fp8, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(BackboneError, match=rf"found: {method}; expected: fp8, bitsandbytes.*GGUF file; to do: use"):
        load_backbone(copy_of_fp8)


@pytest.mark.parametrize("said", ["fp8", [], {}, {"bits": 4}, {"quant_method": None}, {"quant_method": ["fp8"]}])
def test_a_configuration_that_names_no_method_is_refused(copy_of_fp8: Path, said: Any) -> None:
    edit_config(copy_of_fp8, quantization_config=said)
    with pytest.raises(BackboneError, match="names no method"):
        load_backbone(copy_of_fp8)


@pytest.mark.parametrize(
    ("method", "module"),
    [
        ("fp8", "accelerate"),
        ("bitsandbytes", "bitsandbytes"),
        ("torchao", "torchao"),
        ("compressed-tensors", "compressed_tensors"),
    ],
)
def test_a_missing_library_is_named_with_its_install_line(
    copy_of_fp8: Path, monkeypatch: pytest.MonkeyPatch, method: str, module: str
) -> None:
    edit_config(copy_of_fp8, quantization_config={"quant_method": method, "config_groups": {"group_0": {}}})
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed.*pip install 'sparsehub\[quantised\]'"):
        load_backbone(copy_of_fp8)


SPARSE = {"config_groups": {"a": {}}, "sparsity_config": {"format": "sparse-24-bitmask"}}


@pytest.mark.parametrize("said", [{"config_groups": {}}, {"config_groups": {"a": {}, "b": {}}}, SPARSE])
def test_layers_that_are_quantised_each_in_their_way_are_refused(copy_of_fp8: Path, said: dict[str, Any]) -> None:
    edit_config(copy_of_fp8, quantization_config={"quant_method": "compressed-tensors", **said})
    with pytest.raises(BackboneError, match=r"differently from layer to layer.*one group"):
        load_backbone(copy_of_fp8)


@pytest.mark.parametrize("method", [method for method in NEEDS if method != "gguf"])
def test_values_whose_scale_is_gone_are_refused(quantised: Quantised, tmp_path: Path, method: str) -> None:
    folder = shutil.copytree(quantised(method), tmp_path / "copy")
    scales = ("SCB", "weight.absmax", "weight_scale", "weight_scale_inv", "_weight_scale")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    stored = load_file(folder / WEIGHTS)
    del stored[next(name for name in stored if name in [f"encoder.layer.0.output.dense.{s}" for s in scales])]
    save_file(stored, folder / WEIGHTS, metadata=metadata)
    with pytest.raises(BackboneError, match=r"without a scale|cannot be dequantised"):
        load_backbone(folder)


def test_scales_that_do_not_fit_are_refused(copy_of_fp8: Path) -> None:
    edit_tensor(copy_of_fp8, SCALE, lambda scale: torch.ones(5, 3))
    with pytest.raises(BackboneError, match=r"cannot be dequantised \(fp8\)"):
        load_backbone(copy_of_fp8)


def test_nothing_is_extracted_from_quantised_tensors(
    quantised: Quantised, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    from sparsehub import extract

    for tuned, base in ((quantised("fp8"), tiny_checkpoint("bert")), (tiny_checkpoint("bert"), quantised("fp8"))):
        with pytest.raises(BackboneError, match=r"is quantised.*give the checkpoint it was quantised from"):
            extract(tuned, base, tmp_path / "out", kind="embedding", name="none")


def test_a_gguf_file_is_another_backbone_when_one_scale_differs(quantised: Quantised, tmp_path: Path) -> None:
    folder = shutil.copytree(quantised("gguf"), tmp_path / "copy")
    before = open_checkpoint(str(folder)).fingerprint
    data = bytearray((folder / GGUF_NAME).read_bytes())
    data[-34] ^= 1  # the first byte of the last block: of its scale
    (folder / GGUF_NAME).write_bytes(data)
    assert open_checkpoint(str(folder)).fingerprint != before


def test_the_tokenizer_of_a_gguf_file_is_read_where_no_other_lies_beside_it(
    quantised: Quantised, tmp_path: Path
) -> None:
    folder = shutil.copytree(quantised("gguf"), tmp_path / "copy")
    beside = load_tokenizer(open_checkpoint(str(folder)))
    for file in folder.glob("*.json"):
        file.unlink()
    inside = load_tokenizer(open_checkpoint(str(folder)))
    assert [inside(text)["input_ids"] for text in TEXTS] == [beside(text)["input_ids"] for text in TEXTS]
    assert load_backbone(folder).language_model is not None


def test_a_linear_weight_is_told_from_others() -> None:
    assert is_linear("pooler.dense.weight", torch.zeros(2, 2))
    assert not is_linear("embeddings.word_embeddings.weight", torch.zeros(2, 2))
