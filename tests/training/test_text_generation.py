"""Training deltas of a language model: one voice of the play, by every rule, packaged without a head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from sparsehub.backbone import load_backbone, open_checkpoint
from sparsehub.cli.app import app
from sparsehub.errors import UsageError
from sparsehub.package import read_package
from sparsehub.package.manifest import HEAD_FILE
from sparsehub.package.materialize import materialize
from sparsehub.package.reader import check_backbone
from sparsehub.selection import rule_names
from sparsehub.training import TrainConfig, train


@pytest.fixture(scope="module")
def voice_rows(tiny_language, tmp_path_factory):
    """Speeches of the clerk, as files: to learn, and held out."""
    folder = tmp_path_factory.mktemp("voice")
    said = list(dict.fromkeys(tiny_language.speeches("CLERK")))
    for name, rows in {"train": said[:120], "validation": said[120:150]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"CLERK:\n{t}"}) + "\n" for t in rows))
    return folder


@pytest.fixture
def config(tiny_language, voice_rows, tmp_path):
    def make(**changes) -> TrainConfig:
        small = {
            "backbone": str(tiny_language.folder),
            "kind": "text-generation",
            "name": "clerk",
            "train": str(voice_rows / "train.jsonl"),
            "validation": str(voice_rows / "validation.jsonl"),
            "text": ("text",),
            "out": str(tmp_path / "clerk"),
            "calibration_batches": 2,
            "epochs": 1,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "max_length": 64,
            "device": "cpu",
        }
        return TrainConfig(**{**small, **changes})

    return make


@pytest.mark.parametrize("packing", [False, True])
def test_a_delta_of_a_voice_beats_its_backbone_on_texts_that_neither_has_seen(config, packing):
    result = train(config(packing=packing, epochs=2 if not packing else 6))
    package = read_package(result.folder)
    own, base = (result.manifest.metrics[name] for name in ("validation", "validation (backbone)"))
    assert own["perplexity"] < base["perplexity"] * 0.98
    assert package.head == {} and not (result.folder / HEAD_FILE).exists()
    assert result.manifest.task.labels == () and result.manifest.task.label_field == ""
    card = (result.folder / "README.md").read_text()
    assert "/v1/completions" in card and "pipeline_tag: text-generation" in card and "brings no head" in card


def test_metrics_are_of_the_package_as_plain_transformers_runs_it(config, tiny_language, tmp_path):
    result = train(config())
    materialize(read_package(result.folder), open_checkpoint(str(tiny_language.folder)), tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer.model_max_length == 160  # a text may be longer than the rows that it was trained on
    total, tokens = 0.0, 0
    for line in Path(config().validation).read_text().splitlines():
        ids = torch.tensor([[*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]])
        with torch.inference_mode():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    expected = torch.tensor(total / tokens).exp()
    assert result.manifest.metrics["validation"]["perplexity"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", sorted({*rule_names()} - {"sam", "bitfit"}))  # a Llama has no biases
def test_every_rule_chooses_entries_of_a_language_model(config, method):
    options = {"probes": 1} if method == "sam-hessian" else {}
    result = train(config(method=method, nnz=400, validation=None, options=options, epochs=0.2))
    assert 0 < result.manifest.delta.nnz <= 400


def test_prompts_with_completions_from_the_command_line(config, tiny_language, tmp_path):
    rows = [{"ask": f"Who is {place}? ", "answer": "The child."} for place in ("here", "there", "by the quay")] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", "--kind", "text-generation", "--backbone", str(tiny_language.folder), "--name", "answers"]
    arguments += ["--train", str(tmp_path / "rows.jsonl"), "--test", str(tmp_path / "rows.jsonl"), "--text", "ask"]
    arguments += ["--label", "answer", "--density", "0.02", "--epochs", "10", "--learning-rate", "0.02", "--json"]
    arguments += ["--batch-size", "4"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "answers")])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["test"]["exact_match"] == 1.0 and metrics["test (backbone)"]["exact_match"] == 0.0


def test_an_untied_output_layer_belongs_to_the_backbone(tiny_checkpoint, config, tmp_path):
    folder = untied(tiny_checkpoint("llama"), tmp_path / "untied")
    backbone = load_backbone(str(folder))
    assert "lm_head.weight" in backbone.arena.slots and backbone.language_model is not None
    result = train(config(backbone=str(folder), method="magnitude", include=("lm_head.*",), nnz=50, validation=None))
    assert set(result.manifest.delta.parameters) == {"lm_head.weight"}
    assert result.manifest.backbone.parameters == backbone.arena.numel
    check_backbone(result.manifest, backbone)


def test_a_base_model_alone_cannot_generate(tiny_checkpoint, config):
    from sparsehub.errors import BackboneError

    with pytest.raises(BackboneError, match="no causal language model"):
        train(config(backbone=str(tiny_checkpoint("llama"))))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text": ("a", "b")}, "one text field"),
        ({"labels": ("a", "b")}, "no labels"),
        ({"kind": "regression", "packing": True}, "packing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, changes, says):
    with pytest.raises(UsageError, match=says):
        config(**changes)


def test_a_checkpoint_that_another_trainer_made_becomes_a_package(tiny_checkpoint, tiny_language, tmp_path):
    """Tied and untied, lossless: the package gives back that checkpoint, bit for bit."""
    for name, base in {
        "tied": tiny_language.folder,
        "untied": untied(tiny_checkpoint("llama"), tmp_path / "u"),
    }.items():
        tuned = transformers.AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            for place, parameter in enumerate(tuned.parameters()):
                parameter.view(-1)[place : place + 3] += 0.25
        tuned.save_pretrained(tmp_path / name)
        arguments = ["extract", "--backbone", str(base), str(tmp_path / name), "--name", name]
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / f"{name}-package")])
        assert done.exit_code == 0, done.output
        package = read_package(tmp_path / f"{name}-package")
        assert package.manifest.task.kind == "text-generation" and package.head == {}
        materialize(package, open_checkpoint(str(base)), tmp_path / f"{name}-again")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-again")
        wanted = tuned.state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in again.state_dict().items())


def untied(base, folder):
    """A random Llama with an output layer of its own."""
    config = transformers.AutoConfig.from_pretrained(base)
    config.tie_word_embeddings = False
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
