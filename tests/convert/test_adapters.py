"""PEFT adapters in and out, each beside what PEFT itself makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparsehub.backbone import open_checkpoint
from sparsehub.convert.adapter_change import change_of
from sparsehub.convert.adapters import is_adapter, read_adapter
from sparsehub.convert.extract import Extraction, extract_adapter
from sparsehub.convert.name_matching import layout_of
from sparsehub.convert.shira import export_shira
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import BackboneMismatchError, FormatError, SparsehubError, UsageError
from sparsehub.package import Package, read_package
from sparsehub.package.task_spec import TaskSpec

TinyCheckpoint = Callable[[str], Path]
LINEAR = ["query", "value", "dense"]


def classifier(base: Path) -> Any:
    torch.manual_seed(3)
    pad = AutoTokenizer.from_pretrained(base).pad_token_id or 0
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=pad).eval()


def adapted(base: Path, config: Any) -> Any:
    """A classifier with an adapter whose every tensor is random."""
    model = peft.get_peft_model(classifier(base), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


def merged(model: Any, prefix: str) -> dict[str, Tensor]:
    """The base weights after PEFT has merged, by the base model's names."""
    found = model.merge_and_unload().named_parameters()
    return {n.removeprefix(prefix): p.detach().clone() for n, p in found if n.startswith(prefix)}


def applied(base: Path, delta: Delta) -> dict[str, Tensor]:
    from transformers import AutoModel

    weights = {n: p.detach().clone() for n, p in AutoModel.from_pretrained(base).named_parameters()}
    for name, part in delta.parameters.items():
        weights[name].view(-1)[part.indices] += part.values.float()
    return weights


def wanted(base: Path, task: TaskSpec, out: Path) -> Extraction:
    return Extraction(open_checkpoint(str(base)), task, out, "adapted")


LORAS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("bert", "bert.", {"target_modules": LINEAR}),
    "rslora": ("bert", "bert.", {"target_modules": LINEAR, "use_rslora": True}),
    "patterns": (
        "bert",
        "bert.",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"layer.0.attention.self.query": 7},
            "alpha_pattern": {"bert.encoder.layer.1.*value": 40},
        },
    ),
    "embedding": ("bert", "bert.", {"target_modules": ["word_embeddings", "query"]}),
    "conv1d": ("gpt2", "transformer.", {"target_modules": ["c_attn", "c_proj"]}),
    "llama": ("llama", "model.", {"target_modules": ["q_proj", "down_proj"]}),
}


@pytest.mark.parametrize("case", LORAS)
def test_a_whole_lora_is_what_peft_merges(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, case: str
) -> None:
    family, prefix, more = LORAS[case]
    base = tiny_checkpoint(family)
    model = adapted(base, peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, **more))
    model.save_pretrained(tmp_path / "lora")
    found = extract_adapter(
        wanted(base, task, tmp_path / "out"), read_adapter(tmp_path / "lora"), lambda n: n, "float32"
    )
    assert found.kept == pytest.approx(1.0)
    package = read_package(found.folder)
    head = {n.replace(".modules_to_save.default", ""): p for n, p in model.named_parameters() if ".modules_to" in n}
    assert {n.removeprefix("base_model.model."): p.tolist() for n, p in head.items()} == {
        n: t.tolist() for n, t in package.head.items()
    }
    expected = merged(model, prefix)
    for name, weight in applied(base, package.delta).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert package.manifest.delta.method == "extracted, lora"
    assert package.manifest.lineage.checkpoint == "lora"


def test_a_budget_keeps_the_largest_entries_of_a_lora_and_tells_their_share(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path
) -> None:
    base = tiny_checkpoint("bert")
    model = adapted(base, peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=LINEAR))
    model.save_pretrained(tmp_path / "lora")
    found = extract_adapter(wanted(base, task, tmp_path / "out"), read_adapter(tmp_path / "lora"), lambda _: 200)
    plain = {n: p.detach() for n, p in classifier(base).bert.named_parameters()}
    changes = {n: w - plain[n] for n, w in merged(model, "bert.").items()}
    order = torch.cat([c.flatten().abs() for c in changes.values()]).sort(descending=True).values
    assert found.manifest.delta.nnz == 200 and found.manifest.delta.value_dtype == "float16"
    assert found.kept == pytest.approx(float(order[:200].square().sum() / order.square().sum()), rel=1e-3)
    assert {layer.part for layer in found.layers} == {"encoder.layer.0", "encoder.layer.1", "pooler"}
    assert 0 < min(layer.kept for layer in found.layers) <= max(layer.kept for layer in found.layers) < 1
    with pytest.raises(UsageError, match="a LoRA changes every entry of its matrices"):
        extract_adapter(wanted(base, task, tmp_path / "other"), read_adapter(tmp_path / "lora"), None)


def supertuned(base: Path, **more: Any) -> Any:
    return adapted(base, peft.SupertuningConfig(task_type="SEQ_CLS", target_modules=LINEAR, sparsity=0.9, **more))


def shira(base: Path) -> Any:
    config = peft.ShiraConfig(task_type="SEQ_CLS", r=2, target_modules=LINEAR, random_seed=1)
    return adapted(base, config)


@pytest.mark.parametrize("make", [shira, supertuned], ids=["shira", "supertuning"])
def test_a_sparse_adapter_is_imported_without_loss(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    base = tiny_checkpoint("bert")
    model = make(base)
    model.save_pretrained(tmp_path / "adapter")
    assert is_adapter(tmp_path / "adapter") and not is_adapter(base)
    found = extract_adapter(wanted(base, task, tmp_path / "out"), read_adapter(tmp_path / "adapter"), None)
    package = read_package(found.folder)
    assert (found.kept, package.delta.value_dtype) == (1.0, "float32")
    deltas = {
        name.removeprefix("base_model.model.bert."): module.get_delta_weight("default").to_dense().detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert package.delta.nnz == sum(int((d != 0).sum()) for d in deltas.values())
    for module, dense in deltas.items():
        part = package.delta.parameters[f"{module}.weight"]
        assert torch.equal(dense.flatten()[part.indices], part.values)
    assert set(package.head) == {"classifier.weight", "classifier.bias"}
    pruned = extract_adapter(
        wanted(base, task, tmp_path / "pruned"), read_adapter(tmp_path / "adapter"), lambda _: 50, "bfloat16"
    )
    assert (pruned.manifest.delta.nnz, pruned.manifest.delta.value_dtype) == (50, "bfloat16") and pruned.kept < 1


def a_package(base: Path, task: TaskSpec, tmp_path: Path, delta: Delta) -> Package:
    """Written and read, as any package is."""
    from sparsehub.backbone import load_backbone
    from sparsehub.package import Manifest
    from sparsehub.package.manifest_builder import backbone_ref, delta_record
    from tests.support.packages import write_bare_package

    backbone = load_backbone(str(base))
    record = delta_record("random", delta, backbone.arena.numel, backbone.digest_of)
    draft = Manifest(1, "task", "1.0.0", task, backbone_ref(backbone), record, files={})
    head = {"classifier.weight": torch.randn(3, 32), "classifier.bias": torch.randn(3)}
    write_bare_package(tmp_path, draft, delta, head, "# a card\n", {})
    return read_package(tmp_path)


def linear_delta(seed: int, fullest: int = 60, value_dtype: str = "float16") -> Delta:
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    shapes = {
        "encoder.layer.0.attention.self.query.weight": (32, 32),
        "encoder.layer.1.intermediate.dense.weight": (64, 32),
        "pooler.dense.weight": (32, 32),
    }
    for name, shape in shapes.items():
        count = int(torch.randint(1, fullest, (1,), generator=generator))
        places = torch.randperm(shape[0] * shape[1], generator=generator)[:count].sort().values
        values = torch.randn(count, generator=generator).to(getattr(torch, value_dtype, torch.float32))
        parts[name] = ParameterDelta(shape, places, values)
    return Delta(parts, "add", value_dtype)


def equal(first: Delta, second: Delta) -> bool:
    return first.parameters.keys() == second.parameters.keys() and all(
        torch.equal(part.indices, second.parameters[name].indices)
        and torch.equal(part.values.float(), second.parameters[name].values.float())
        for name, part in first.parameters.items()
    )


@given(st.integers(0, 2**20), st.integers(2, 200), st.sampled_from(["float16", "bfloat16", "float32"]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_round_trip_is_exact(
    tiny_checkpoint: TinyCheckpoint,
    task: TaskSpec,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    fullest: int,
    value_dtype: str,
) -> None:
    base, folder = tiny_checkpoint("bert"), tmp_path_factory.mktemp("round")
    package = a_package(base, task, folder / "package", linear_delta(seed, fullest, value_dtype))
    layout = layout_of(open_checkpoint(str(base)), task)
    exported = export_shira(package, layout, folder / "shira")
    assert exported.entries == package.delta.nnz <= exported.stored
    back = extract_adapter(wanted(base, task, folder / "back"), read_adapter(exported.folder), None)
    again = read_package(back.folder)
    assert equal(again.delta, package.delta) and again.delta.value_dtype == value_dtype
    assert {n: t.tolist() for n, t in again.head.items()} == {n: t.tolist() for n, t in package.head.items()}


@pytest.mark.parametrize("value_dtype", ["float16", "int8"])
def test_peft_loads_what_was_exported_and_answers_like_the_package(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, value_dtype: str
) -> None:
    from sparsehub.package.materialize import materialize

    base = tiny_checkpoint("bert")
    package = a_package(base, task, tmp_path / "package", linear_delta(4, value_dtype=value_dtype))
    checkpoint = open_checkpoint(str(base))
    export_shira(package, layout_of(checkpoint, task), tmp_path / "shira")
    model = peft.PeftModel.from_pretrained(classifier(base), str(tmp_path / "shira")).eval()
    materialize(package, checkpoint, tmp_path / "whole")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
        plain = classifier(base)(input_ids=ids).logits
    assert not torch.allclose(plain, model(input_ids=ids).logits)


def test_what_peft_saved_again_is_still_the_same(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path
) -> None:
    """PEFT drops our metadata: what comes back then holds the padding too, as zeros."""
    base = tiny_checkpoint("bert")
    package = a_package(base, task, tmp_path / "package", linear_delta(8))
    export_shira(package, layout_of(open_checkpoint(str(base)), task), tmp_path / "shira")
    peft.PeftModel.from_pretrained(classifier(base), str(tmp_path / "shira")).save_pretrained(tmp_path / "again")
    layout = layout_of(open_checkpoint(str(base)), task)
    found = change_of(read_adapter(tmp_path / "again"), layout).sparse
    assert found is not None
    real = {n: p.indices[p.values != 0].tolist() for n, p in found.parameters.items()}
    assert real == {n: p.indices.tolist() for n, p in package.delta.parameters.items()}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pooler.dense.bias": ((32,), [3])}, r"Linear layers alone.*pooler\.dense\.bias"),
        ({"embeddings.word_embeddings.weight": (None, [3])}, "Linear layers alone"),
        (
            {
                "pooler.dense.weight": ((32, 32), [0]),
                "encoder.layer.0.intermediate.dense.weight": ((64, 32), list(range(1900))),
            },
            r"PEFT's r 20 needs more entries than 'pooler\.dense\.weight' has; found: 1280 of 1024",
        ),
    ],
)
def test_what_is_no_shira_is_refused_by_name(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, parts: Any, message: str
) -> None:
    base = tiny_checkpoint("bert")
    layout = layout_of(open_checkpoint(str(base)), task)
    delta = Delta(
        {
            name: ParameterDelta(shape or layout.base[name], torch.tensor(places), torch.ones(len(places)))
            for name, (shape, places) in parts.items()
        },
        "add",
        "float16",
    )
    package = a_package(base, task, tmp_path / "package", delta)
    with pytest.raises(UsageError, match=message):
        export_shira(package, layout, tmp_path / "shira")
    assert not (tmp_path / "shira").exists()


def broken(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def test_adapters_that_are_no_change_of_weights_are_refused(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path
) -> None:
    base = tiny_checkpoint("bert")
    adapted(base, peft.IA3Config(task_type="SEQ_CLS", target_modules=["key"], feedforward_modules=[])).save_pretrained(
        tmp_path / "ia3"
    )
    with pytest.raises(UsageError, match="cannot become a package; found: IA3"):
        read_adapter(tmp_path / "ia3")


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}])
def test_a_lora_that_is_more_than_a_product_is_refused(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, setting: dict[str, Any]
) -> None:
    base = tiny_checkpoint("bert")
    adapted(base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], **setting)).save_pretrained(
        tmp_path / "lora"
    )
    with pytest.raises(UsageError, match=r"merge .* its model with PEFT"):
        extract_adapter(wanted(base, task, tmp_path / "out"), read_adapter(tmp_path / "lora"), lambda n: n)


def test_an_adapter_without_its_head_or_its_indices_or_with_another_backbone_is_refused(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path
) -> None:
    base = tiny_checkpoint("bert")

    def tried(folder: str, on: Path = base) -> None:
        extract_adapter(wanted(on, task, tmp_path / "out"), read_adapter(tmp_path / folder), lambda n: n)

    adapted(base, peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "headless")
    with pytest.raises(UsageError, match=r"lacks the task's head; found: no classifier\.bias, classifier\.weight"):
        tried("headless")
    with pytest.raises(SparsehubError):
        tried("headless", tiny_checkpoint("gpt2"))
    supertuned(base, save_precomputed_indices=False).save_pretrained(tmp_path / "unsaid")
    with pytest.raises(UsageError, match="does not say which entries"):
        tried("unsaid")
    supertuned(base, r=2).save_pretrained(tmp_path / "hybrid")
    with pytest.raises(SparsehubError, match=r"low-rank part|neither an adapter's nor the head's"):
        tried("hybrid")
    assert not (tmp_path / "out").exists()


def test_malformed_adapters_are_refused(tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tiny_checkpoint("bert")
    shira(base).save_pretrained(tmp_path / "shira")
    weights = tmp_path / "shira" / "adapter_model.safetensors"
    whole = load_file(weights)
    name = next(n for n in whole if n.endswith("query.shira_indices"))

    def tried(tensors: dict[str, Tensor]) -> None:
        save_file(tensors, weights)
        extract_adapter(wanted(base, task, tmp_path / "out"), read_adapter(tmp_path / "shira"), None)

    for spoilt, error, message in (
        ({**whole, name: whole[name] + 1000}, FormatError, "out of range"),
        ({**whole, name: torch.zeros_like(whole[name])}, FormatError, "changes an entry twice"),
        ({n: t for n, t in whole.items() if n != name}, FormatError, "lacks its indices"),
        ({n.replace("layer.1", "layer.7"): t for n, t in whole.items()}, BackboneMismatchError, "does not have"),
        ({n: t for n, t in whole.items() if "classifier" in n}, FormatError, "changes nothing"),
    ):
        with pytest.raises(error, match=message):
            tried(spoilt)
    weights.unlink()
    with pytest.raises(FormatError, match=r"holds no adapter_model\.safetensors"):
        read_adapter(tmp_path / "shira")
