"""What `extract` compares beside the weights: configuration, tokenizer, and the outputs of a probe batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import sparsehub
from sparsehub.backbone import open_checkpoint
from sparsehub.convert import tuned_model
from sparsehub.convert.configuration_check import check_configuration
from sparsehub.convert.output_comparison import TOLERANCE, probe_batch
from sparsehub.convert.tokenizer_check import check_tokenizer
from sparsehub.errors import BackboneError, SparsehubError, UsageError
from sparsehub.package.task_spec import TaskSpec

TinyCheckpoint = Callable[[str], Path]
LABELS = ("bad", "fair", "good")
GENERATION = TaskSpec("text-generation", (), "text_generation", ("text",), "", 24, ())


def tuned_on(base: Path, folder: Path, auto: Any = AutoModelForSequenceClassification, dtype: Any = None) -> Path:
    """A model in which one entry in ten of every tensor changed, with its tokenizer."""
    torch.manual_seed(11)
    tokenizer = AutoTokenizer.from_pretrained(base)
    labels = {} if auto is AutoModelForCausalLM else {"num_labels": 3, "id2label": dict(enumerate(LABELS))}
    model = auto.from_pretrained(base, dtype=dtype or torch.float32, **labels)
    with torch.no_grad():
        for parameter in model.parameters():
            change = torch.randn_like(parameter.float()) * 0.05
            parameter.add_((change * (torch.rand_like(change) < 0.1)).to(parameter.dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tuned_of(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tuned_of(family): a fine-tuned classifier, or `lm` for a language model on the tiny llama. Do not change it."""
    made: dict[str, Path] = {}

    def tuned(family: str) -> Path:
        if family not in made:
            base = tiny_checkpoint("llama" if family == "lm" else family)
            auto = AutoModelForCausalLM if family == "lm" else AutoModelForSequenceClassification
            made[family] = tuned_on(base, tmp_path_factory.mktemp("tuned") / family, auto)
        return made[family]

    return tuned


@pytest.fixture(scope="session")
def lm(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model as a backbone: the tiny llama with an output layer."""
    folder = tmp_path_factory.mktemp("lm") / "base"
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint("llama")).save_pretrained(folder)
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def extract(tuned: Path, base: Path, out: Path, **options: Any) -> Any:
    return sparsehub.extract(tuned, base, out, name="mood", max_length=24, **options)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "modernbert"])
def test_a_lossless_package_answers_as_the_tuned_model_and_the_report_says_so(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    found = extract(tuned_of(family), tiny_checkpoint(family), tmp_path / "out")
    assert (
        found.agreement.agrees and found.agreement.largest > 0.1 and found.agreement.against == "the tuned checkpoint"
    )
    assert found.agreement.difference <= 1e-5 * found.agreement.largest
    assert sparsehub.read_package(tmp_path / "out").digest == found.manifest.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_language_model_is_probed_too(lm: Path, tmp_path: Path) -> None:
    found = extract(tuned_on(lm, tmp_path / "tuned", AutoModelForCausalLM), lm, tmp_path / "out")
    assert found.agreement.agrees and found.manifest.task.kind == "text-generation"


def test_bfloat16_is_probed_in_bfloat16(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    base = tiny_checkpoint("bert")
    found = extract(tuned_on(base, tmp_path / "tuned", dtype=torch.bfloat16), base, tmp_path / "out")
    assert found.manifest.delta.value_dtype == "bfloat16" and found.agreement.difference == 0


def test_what_a_budget_costs_is_told(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path
) -> None:
    found = extract(tuned_of("bert"), tiny_checkpoint("bert"), tmp_path / "out", nnz=20)
    assert not found.agreement.agrees and found.agreement.relative > TOLERANCE
    assert "DIFFERS: outputs of a probe batch are at most" in found.agreement.text


def test_no_check_loads_no_model_and_is_told(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehub.convert import output_comparison

    monkeypatch.setattr(tuned_model, "tuned_model", lambda *_: pytest.fail("loaded a model"))
    base, tuned = tiny_checkpoint("bert"), tuned_of("bert")
    found = extract(tuned, base, tmp_path / "asked", check=False)
    assert found.agreement is None and "by a probe batch (as asked)" in found.notes[-1]
    monkeypatch.setattr(output_comparison, "PARAMETERS", 1000)
    found = extract(tuned, base, tmp_path / "large")
    assert found.agreement is None and "parameters are more than 1,000: give --check" in found.notes[-1]


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"layer_norm_eps": 1e-5}),
        ("bert", {"num_attention_heads": 2}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("roberta", {"pad_token_id": 3}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("llama", {"rms_norm_eps": 1e-3}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("modernbert", {"classifier_pooling": "mean"}),
        ("modernbert", {"local_attention": 4}),
        ("deberta-v2", {"pooler_hidden_act": "relu"}),
    ],
    ids=str,
)
def test_a_configuration_that_computes_something_else_is_refused_by_name(
    tiny_checkpoint: TinyCheckpoint,
    tuned_of: Callable[[str], Path],
    tmp_path: Path,
    family: str,
    setting: dict[str, Any],
) -> None:
    tuned = copied(tuned_of(family), tmp_path / "tuned")
    before = json.loads((tuned / "config.json").read_text())
    (name, value), *_ = setting.items()
    if before.get(name) == value:
        value = {"classifier_pooling": "cls"}.get(name, value)
    edit(tuned, "config.json", **{name: value})
    with pytest.raises(BackboneError, match=f"computes something else .*found: .*{name}: .*expected: .*{name}: "):
        extract(tuned, tiny_checkpoint(family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2},
        {"initializer_range": 0.5},
        {"use_cache": False},
        {
            "transformers_version": "4.2.0",
            "_name_or_path": "somewhere",
            "architectures": ["BertForSequenceClassification"],
        },
        {"position_embedding_type": "absolute"},
        {"chunk_size_feed_forward": 4},
    ],
    ids=str,
)
def test_a_configuration_that_computes_the_same_is_not(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path, setting: dict[str, Any]
) -> None:
    tuned = copied(tuned_of("bert"), tmp_path / "tuned")
    edit(tuned, "config.json", **setting)
    base = open_checkpoint(str(tiny_checkpoint("bert")))
    assert check_configuration(base, open_checkpoint(str(tuned)), TASK) == ()


TASK = TaskSpec("text-classification", LABELS, "single_label_classification", ("text",), "label", 24, ("accuracy",))


def test_settings_that_nobody_reads_are_told(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = copied(tuned_of("bert"), tmp_path / "tuned")
    edit(tuned, "config.json", unsloth_version="2024.8")
    found = extract(tuned, tiny_checkpoint("bert"), tmp_path / "out")
    assert found.notes == (f"config.json of {tuned} differs in what transformers does not read: unsloth_version",)


def test_a_checkpoint_without_configuration_or_tokenizer_takes_the_backbones_and_says_so(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    shutil.copy(tuned_of("bert") / "model.safetensors", tuned)
    found = extract(tuned, tiny_checkpoint("bert"), tmp_path / "out", kind="text-classification", labels=LABELS)
    assert found.agreement.agrees and len(found.notes) == 2
    assert "has no config.json" in found.notes[0] and "has no tokenizer of its own" in found.notes[1]


def test_an_untied_output_layer_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("gpt2"))
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_checkpoint("gpt2")).save_pretrained(base)
    tuned = tuned_on(base, tmp_path / "tuned", AutoModelForCausalLM)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tuned / "model.safetensors")
    tied = tensors["transformer.wte.weight"]
    save_file({**tensors, "lm_head.weight": tied.clone()}, tuned / "model.safetensors", metadata={"format": "pt"})
    assert extract(tuned, base, tmp_path / "same").agreement.agrees
    save_file({**tensors, "lm_head.weight": tied + 1}, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"other values in 'lm_head\.weight' than in 'transformer\.wte\.weight'"):
        extract(tuned, base, tmp_path / "out")
    edit(tuned, "config.json", tie_word_embeddings=False)
    with pytest.raises(BackboneError, match="tie_word_embeddings: False"):
        extract(tuned, base, tmp_path / "out")


def test_texts_that_end_elsewhere_are_refused(lm: Path, tmp_path: Path) -> None:
    tuned = tuned_on(lm, tmp_path / "tuned", AutoModelForCausalLM)
    (tuned / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    with pytest.raises(BackboneError, match="end at other tokens than the backbone's"):
        extract(tuned, lm, tmp_path / "out")


def lowercase(folder: Path) -> None:
    edit_tokenizer(folder, lambda table: table["normalizer"].update(lowercase=False))


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def swap(table: dict[str, Any]) -> None:
    words = table["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]


def resaved(folder: Path, change: Callable[[Any], object]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "casing": (lowercase, "it reads 'The Quick BROWN Fox' otherwise"),
    "accents": (
        lambda f: edit_tokenizer(f, lambda t: t["normalizer"].update(strip_accents=False)),
        "it reads 'Größe naïve café Ångström' otherwise",
    ),
    "Chinese": (
        lambda f: edit_tokenizer(f, lambda t: t["normalizer"].update(handle_chinese_chars=False)),
        "it reads '漢字とかな' otherwise",
    ),
    "no special tokens": (lambda f: edit_tokenizer(f, lambda t: t.update(post_processor=None)), "otherwise"),
    "another order": (lambda f: edit_tokenizer(f, swap), "2 tokens of its vocabulary; found: 'a': "),
    "more tokens": (lambda f: resaved(f, lambda t: t.add_tokens(["<tool>"])), "1 tokens of its vocabulary.*<tool>"),
    "cut at the left": (lambda f: edit(f, "tokenizer_config.json", truncation_side="left"), "that is cut otherwise"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_reads_otherwise_is_refused_by_what_it_does(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    change, message = TOKENIZERS[case]
    tuned = copied(tuned_of("bert"), tmp_path / "tuned")
    change(tuned)
    with pytest.raises(BackboneError, match=f"the tokenizer of .*{message}"):
        extract(tuned, tiny_checkpoint("bert"), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda f: edit(f, "tokenizer_config.json", padding_side="left"), "padding_side left, the backbone's right"),
        (lambda f: edit(f, "tokenizer_config.json", model_max_length=12), "model_max_length 12, the backbone's 64"),
        (lambda f: edit(f, "tokenizer_config.json", pad_token="[UNK]"), "pad_token_id 1, the backbone's 0"),
    ],
)
def test_what_changes_no_answer_is_told(
    tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path], tmp_path: Path, change: Any, note: str
) -> None:
    tuned = copied(tuned_of("bert"), tmp_path / "tuned")
    change(tuned)
    found = extract(tuned, tiny_checkpoint("bert"), tmp_path / "out")
    assert found.agreement.agrees and len(found.notes) == 1 and note in found.notes[0]


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: setattr(t, "chat_template", CHAT), "chat template renders a conversation otherwise"),
        (lambda t: setattr(t, "eos_token", "<s>"), "eos_token_id|end at other tokens"),
    ],
)
def test_a_language_models_template_and_end_are_compared(lm: Path, tmp_path: Path, change: Any, message: str) -> None:
    tuned = tuned_on(lm, tmp_path / "tuned", AutoModelForCausalLM)
    resaved(tuned, change)
    with pytest.raises(BackboneError, match=message):
        extract(tuned, lm, tmp_path / "out")


def test_a_sound_tokenizer_has_no_difference(tiny_checkpoint: TinyCheckpoint, tuned_of: Callable[[str], Path]) -> None:
    for family in ("bert", "roberta", "gpt2", "llama", "modernbert", "deberta-v2"):
        base, tuned = (open_checkpoint(str(make(family))) for make in (tiny_checkpoint, tuned_of))
        assert check_tokenizer(base, tuned, TASK) == (), family


def test_an_adapter_is_held_against_pefts_merge(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    base = tiny_checkpoint("bert")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=9, target_modules=["query", "dense"], alpha_pattern={"query": 3}
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "lora")
    options: dict[str, Any] = {"kind": "text-classification", "labels": LABELS, "value_dtype": "float32"}
    found = extract(tmp_path / "lora", base, tmp_path / "out", density=1, **options)
    assert found.agreement.agrees and found.agreement.against == "the adapter as PEFT merges it"
    found = extract(tmp_path / "lora", base, tmp_path / "cut", nnz=9, **options)
    assert not found.agreement.agrees

    def halved(self: Any, name: str) -> Tensor:
        return original(self, name) / 2

    layer = peft.tuners.lora.layer.Linear
    original = layer.get_delta_weight
    monkeypatch.setattr(layer, "get_delta_weight", halved)
    with pytest.raises(UsageError, match=r"PEFT merges .* to other weights than its two matrices say"):
        extract(tmp_path / "lora", base, tmp_path / "no", density=1, **options)
    monkeypatch.setattr(tuned_model.importlib.util, "find_spec", lambda name: None)
    found = extract(tmp_path / "lora", base, tmp_path / "without", density=1, **options)
    assert found.agreement.agrees and "PEFT is not installed" in found.agreement.against


def test_an_adapters_own_tokenizer_is_compared(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    import peft

    base = tiny_checkpoint("bert")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(
        tmp_path / "l"
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path / "l")
    with pytest.raises(SparsehubError, match=r"the tokenizer of .*<tool>"):
        extract(tmp_path / "l", base, tmp_path / "out", density=1, kind="text-classification", labels=LABELS)


def test_a_probe_is_the_same_at_every_call_and_made_of_ordinary_tokens(tiny_checkpoint: TinyCheckpoint) -> None:
    base = tiny_checkpoint("bert")
    tokenizer, config = AutoTokenizer.from_pretrained(base), transformers.AutoConfig.from_pretrained(base)
    batch, again = (probe_batch(tokenizer, config, TASK) for _ in range(2))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) == len(lengths) >= 6 and max(lengths) == 24
    inside = batch["input_ids"][:, 1:-1][batch["attention_mask"][:, 2:].bool()]
    assert not set(inside.tolist()) & {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id}
