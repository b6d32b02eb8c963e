"""Every initialisation and option of the installed PEFT: the package equals PEFT's merge, or it is refused by name."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sparsehub.backbone import open_checkpoint
from sparsehub.convert.adapters import read_adapter
from sparsehub.convert.extract import Extraction, extract_adapter, extract_lossless
from sparsehub.convert.lora_options import (
    CONVERTIBLE,
    HARMLESS,
    INITIALISATIONS,
    REFUSED,
    SCALING,
    SPARSE_HARMLESS,
    check_lora_options,
)
from sparsehub.errors import FormatError, SparsehubError, UsageError
from sparsehub.package import read_package
from sparsehub.package.materialize import task_model_of
from sparsehub.package.task_spec import TaskSpec

TinyCheckpoint = Callable[[str], Path]
LINEAR = ["query", "value", "dense"]
GENERATION = TaskSpec("text-generation", (), "text_generation", ("text",), "", 24, ())
PEFT_OPTIONS = {field.name for field in dataclasses.fields(peft.LoraConfig)}


def classifier(base: Path) -> Any:
    torch.manual_seed(3)
    pad = AutoTokenizer.from_pretrained(base).pad_token_id or 0
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=pad).eval()


def randomised(model: Any) -> Any:
    """The same model with values in all that it trains."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


def saved(base: Path, folder: Path, **options: Any) -> Any:
    """A classifier with a LoRA of random values, saved as PEFT saves it."""
    config = peft.LoraConfig(task_type="SEQ_CLS", **{"r": 4, "lora_alpha": 6, "target_modules": LINEAR, **options})
    model = randomised(peft.get_peft_model(classifier(base), config))
    model.save_pretrained(folder)
    return model


def extracted(base: Path, task: TaskSpec, adapter: Path) -> dict[str, Tensor]:
    """Every parameter of the task's model from the package of all that the adapter changes."""
    wanted = Extraction(open_checkpoint(str(base)), task, adapter.parent / "package", "adapted")
    found = extract_adapter(wanted, read_adapter(adapter), lambda total: total, "float32")
    model = task_model_of(read_package(found.folder), wanted.base).model
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def merged(base: Path, adapter: Path) -> dict[str, Tensor]:
    """Every parameter of what PEFT makes of the saved adapter on a fresh backbone."""
    model = peft.PeftModel.from_pretrained(classifier(base), str(adapter)).merge_and_unload()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_every_option_of_the_installed_peft_is_decided_upon() -> None:
    """A later PEFT with a new option fails here: compare it with PEFT's merge below, or refuse it by name."""
    assert PEFT_OPTIONS - HARMLESS - SCALING - set(REFUSED) == {"init_lora_weights"}
    for kind, config in (("SHIRA", peft.ShiraConfig), ("SUPERTUNING", peft.SupertuningConfig)):
        names = {field.name for field in dataclasses.fields(config)}
        assert names - HARMLESS - SPARSE_HARMLESS[kind] <= {"r", "lora_alpha"}, kind


def test_every_initialisation_of_the_installed_peft_is_decided_upon() -> None:
    hint = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    names = {name for part in typing.get_args(hint) for name in typing.get_args(part)}
    assert {"pissa", "olora"} <= names
    moving = {name for name in names if name.startswith((*CONVERTIBLE, "loftq"))}
    assert names - moving <= set(INITIALISATIONS)
    assert not any(str(known).startswith((*CONVERTIBLE, "loftq")) for known in INITIALISATIONS)


SUPPORTED: dict[str, dict[str, Any]] = {
    **{f"init {known}": {"init_lora_weights": known} for known in INITIALISATIONS},
    "rslora": {"use_rslora": True},
    "rank and alpha patterns": {
        "rank_pattern": {"layer.0.attention.self.query": 7, r".*layer\.1.*dense": 2},
        "alpha_pattern": {"bert.encoder.layer.1.*value": 40, "^bert.pooler.dense": 3},
    },
    "rslora with patterns": {"use_rslora": True, "rank_pattern": {"query": 3}, "alpha_pattern": {"value": 9}},
    "all linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*layer\.0.*(query|key)"},
    "exclude": {"exclude_modules": ["pooler.dense"]},
    "layers": {"target_modules": ["query", "value"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "dropout": {"lora_dropout": 0.3},
    "embeddings": {"target_modules": ["word_embeddings", "token_type_embeddings", "query"]},
    "head by name": {"modules_to_save": ["classifier"]},
    "eva's own settings, unused": {"eva_config": peft.EvaConfig(rho=3.0)},
    "fan in, fan out": {"fan_in_fan_out": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SUPPORTED)
def test_what_is_supported_is_what_peft_merges(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, case: str
) -> None:
    base = tiny_checkpoint("bert")
    model = saved(base, tmp_path / "lora", **SUPPORTED[case])
    found = extracted(base, task, tmp_path / "lora")
    assert_equal(found, merged(base, tmp_path / "lora"))
    assert_equal(found, dict(model.merge_and_unload().named_parameters()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "targets", "more"),
    [
        ("gpt2", ["c_attn", "c_proj", "wte"], {}),
        ("llama", ["q_proj", "down_proj", "embed_tokens"], {}),
        ("distilbert", ["q_lin", "lin1"], {"modules_to_save": ["pre_classifier", "classifier"]}),
    ],
)
def test_transposed_layers_and_embeddings_stored_beside_are_too(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, family: str, targets: Any, more: Any
) -> None:
    base = tiny_checkpoint(family)
    saved(base, tmp_path / "lora", target_modules=targets, **more)
    assert_equal(extracted(base, task, tmp_path / "lora"), merged(base, tmp_path / "lora"))


@pytest.mark.filterwarnings("ignore")
def test_eva_that_was_fitted_to_data_is_what_peft_merges(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path
) -> None:
    base = tiny_checkpoint("bert")
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=["query", "value"],
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(),
    )
    model = peft.get_peft_model(classifier(base), config)
    ids = torch.randint(5, 40, (8, 12), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    peft.initialize_lora_eva_weights(model, rows, show_progress_bar=False)
    randomised(model).save_pretrained(tmp_path / "lora")
    assert_equal(extracted(base, task, tmp_path / "lora"), merged(base, tmp_path / "lora"))


VALUES: dict[str, Any] = {
    "use_dora": True,
    "bias": "lora_only",
    "lora_bias": True,
    "trainable_token_indices": [1, 2],
    "target_parameters": ["dense.weight"],
    "alora_invocation_tokens": [5],
    "arrow_config": {"top_k": 3},
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1e-4},
    "velora_config": {"num_groups": 4},
    "monteclora_config": {"num_samples": 2},
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"a": 1},
    "ensure_weight_tying": True,
    "an_option_of_tomorrow": 3,
}


@pytest.fixture(scope="session")
def plain_lora(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "plain"
    saved(tiny_checkpoint("bert"), folder)
    return folder


def edited(plain: Path, folder: Path, **changes: Any) -> Path:
    """The same adapter with a changed adapter_config.json."""
    import shutil

    shutil.copytree(plain, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("option", VALUES)
def test_what_is_more_than_a_product_is_refused_by_name(plain_lora: Path, tmp_path: Path, option: str) -> None:
    folder = edited(plain_lora, tmp_path / "lora", **{option: VALUES[option]})
    with pytest.raises(
        UsageError, match=rf"with {option} .*found: {option}: .*to do: merge it into its model with PEFT"
    ):
        read_adapter(folder)


def test_every_refused_option_was_tried() -> None:
    assert set(REFUSED) == VALUES.keys() - {"an_option_of_tomorrow"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"bias": "all"}, {"lora_bias": True}, {"trainable_token_indices": [1, 2]}],
    ids=str,
)
def test_what_peft_itself_saved_with_them_is_refused_too(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, options: dict[str, Any]
) -> None:
    saved(tiny_checkpoint("bert"), tmp_path / "lora", target_modules=["query"], **options)
    with pytest.raises(UsageError, match=next(iter(options))):
        read_adapter(tmp_path / "lora")


@pytest.mark.parametrize(
    "name", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", "PiSSA", "tomorrow", 1, None]
)
def test_an_initialisation_that_moves_the_backbone_is_refused_by_name(name: Any) -> None:
    with pytest.raises(UsageError) as error:
        check_lora_options({"r": 4, "init_lora_weights": name})
    assert json.dumps(name) in str(error.value) and "moves the backbone's own weights" in str(error.value)
    convertible = str(name).lower().startswith(CONVERTIBLE)
    assert ("path_initial_model_for_weight_conversion" in str(error.value)) is convertible
    assert "merge it into its model with PEFT" in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora"])
def test_both_ways_out_of_a_moved_backbone_lead_to_what_was_trained(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, name: str
) -> None:
    """What PEFT converts to a plain LoRA, and what it merges: both are the model that was trained."""
    base = tiny_checkpoint("bert")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=LINEAR, init_lora_weights=name)
    model = peft.get_peft_model(classifier(base), config)
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "moved")
    with pytest.raises(UsageError, match=f'init_lora_weights: "{name}"'):
        read_adapter(tmp_path / "moved")
    start = json.loads((tmp_path / "start" / "adapter_config.json").read_text())
    (tmp_path / "start" / "adapter_config.json").write_text(json.dumps({**start, "init_lora_weights": True}))
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    head = model.base_model.model.classifier.modules_to_save.default.state_dict()
    save_file({f"classifier.{n}": t for n, t in head.items()}, tmp_path / "plain" / "head.safetensors")
    found = extracted(base, task, tmp_path / "plain")
    whole = model.merge_and_unload()
    assert_equal(found, dict(whole.named_parameters()))
    whole.save_pretrained(tmp_path / "whole")
    wanted = Extraction(open_checkpoint(str(base)), task, tmp_path / "lossless", "whole")
    package = read_package(extract_lossless(wanted, open_checkpoint(str(tmp_path / "whole"))).folder)
    assert_equal(dict(task_model_of(package, wanted.base).model.named_parameters()), dict(whole.named_parameters()))


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    weights = folder / "adapter_model.safetensors"
    save_file({n: t.contiguous().clone() for n, t in change(load_file(weights)).items()}, weights)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["default", "mood"])
@pytest.mark.parametrize("whole", [False, True], ids=["adapter", "backbone too"])
def test_a_raw_state_dict_is_read(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, name: str, whole: bool
) -> None:
    base = tiny_checkpoint("bert")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["word_embeddings", "query"])
    model = randomised(peft.get_peft_model(classifier(base), config, adapter_name=name))
    model.save_pretrained(tmp_path / "saved")
    folder = tmp_path / "saved" / (name if name != "default" else "")
    state = {n: t for n, t in model.state_dict().items() if whole or "lora_" in n or "modules_to_save" in n}
    rewritten(folder, lambda _: {n: t for n, t in state.items() if t.is_floating_point()})
    adapter = read_adapter(folder)
    assert f"({name})" in adapter.notes[0] and "raw state dict" in adapter.notes[0]
    assert_equal(extracted(base, task, folder), dict(model.merge_and_unload().named_parameters()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrapped_names_are_read(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, plain_lora: Path, tmp_path: Path, prefix: str
) -> None:
    base = tiny_checkpoint("bert")
    folder = edited(plain_lora, tmp_path / "lora")
    rewritten(folder, lambda tensors: {n.replace("base_model.model.", f"{prefix}base_model.model.{prefix}"): t
                                       for n, t in tensors.items()})  # fmt: skip
    assert "were read without it" in read_adapter(folder).notes[0]
    assert_equal(extracted(base, task, folder), merged(base, plain_lora))


def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "base_model.model.bert.encoder.layer.0.attention.self.query"
    return {**tensors, f"{name}.base_layer.weight": torch.ones(32, 32)}


def hybrid(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "base_model.model.bert.encoder.layer.0.attention.self.query"
    return {**tensors, f"{name}.shira_weight": torch.ones(3), f"{name}.shira_indices": torch.zeros(2, 3)}


def two_adapters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {n.replace("lora_A.", f"lora_A.{a}."): t for a in ("one", "two") for n, t in tensors.items()}
    return {**tensors, **named}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (moved, {}, "holds 'bert.*query.weight' with other values than the backbone's.*merge it into its model"),
        (hybrid, {}, "is a hybrid: it changes weights in two ways; found: LORA and SHIRA"),
        (hybrid, {"peft_type": "SHIRA"}, "hybrid|not known here"),
        (two_adapters, {}, "holds several adapters; found: one, two"),
        (dict, {"r": 5}, "has another rank than adapter_config.json says; found: 4; expected: 5"),
        (dict, {"alpha_pattern": {"(": 3}}, "adapter_config.json in .* is malformed"),
        (dict, {"lora_alpha": "much"}, "adapter_config.json in .* is malformed"),
    ],
)
def test_what_does_not_fit_together_is_named(
    tiny_checkpoint: TinyCheckpoint,
    task: TaskSpec,
    plain_lora: Path,
    tmp_path: Path,
    change: Any,
    config: Any,
    message: str,
) -> None:
    folder = rewritten(edited(plain_lora, tmp_path / "lora", **config), change)
    with pytest.raises((UsageError, FormatError), match=message):
        extracted(tiny_checkpoint("bert"), task, folder)
    assert not (tmp_path / "package").exists()


def test_peft_takes_its_defaults_where_the_config_says_nothing(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path
) -> None:
    base = tiny_checkpoint("bert")
    saved(base, tmp_path / "lora", r=8, target_modules=["query"])
    path = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in ("r", "lora_alpha", "use_rslora")}))
    assert_equal(extracted(base, task, tmp_path / "lora"), merged(base, tmp_path / "lora"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_a_weight_that_two_layers_share_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, target: str
) -> None:
    base = tiny_checkpoint("gpt2")
    model = AutoModelForCausalLM.from_pretrained(base)
    model = randomised(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM")))
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(SparsehubError, match="which the backbone shares with"):
        extracted(base, GENERATION, tmp_path / "lora")
