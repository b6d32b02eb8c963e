from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from sparsehub.backbone import Backbone, Checkpoint, load_backbone, open_checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError
from sparsehub.package.encoding import collate, encode
from sparsehub.package.heads import build_head
from sparsehub.package.task_model import TaskModel, base_prefix, load_task_model, task_config
from sparsehub.package.task_spec import HEADED_KINDS, TaskSpec
from tests.support.task_models import PAIRS, batch_of

TinyCheckpoint = Callable[[str], Path]
MakeTask = Callable[..., TaskSpec]
TaskRows = dict[str, list[dict[str, Any]]]


def test_the_pairs_are_the_ones_that_transformers_knows() -> None:
    assert {kind for family, kind in PAIRS if family == "llama"} == set(HEADED_KINDS) - {"multiple-choice"}
    assert all(
        (family, kind) in PAIRS for family in ("bert", "roberta", "distilbert", "modernbert") for kind in HEADED_KINDS
    )


def fresh(checkpoint: Checkpoint, task: TaskSpec, **options: Any) -> TaskModel:
    """A task model with a head that is far from zero."""
    torch.manual_seed(1)
    task_model = load_task_model(checkpoint, task, **options)
    parameters = dict(task_model.model.named_parameters())
    with torch.no_grad():
        for name in task_model.head:
            parameters[name].normal_(0, 0.5)
    return task_model


def head_of(task_model: TaskModel) -> dict[str, Tensor]:
    parameters = dict(task_model.model.named_parameters())
    return {name: parameters[name].detach().clone() for name in task_model.head}


@torch.no_grad()
def through_the_head(backbone: Backbone, task: TaskSpec, head: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The logits from the shared backbone's outputs, as serving makes them."""
    flat = {name: tensor.view(-1, tensor.shape[-1]) for name, tensor in batch.items()}
    outputs = backbone.module(**flat)
    pad = load_tokenizer(backbone.checkpoint).pad_token_id
    return build_head(backbone, task, head, pad)(batch, outputs)


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_a_head_on_the_shared_backbone_answers_as_the_whole_model(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, task_rows: TaskRows, family: str, kind: str
) -> None:
    checkpoint, task = open_checkpoint(str(tiny_checkpoint(family))), make_task(kind)
    task_model = fresh(checkpoint, task)
    batch = batch_of(checkpoint, task, task_rows[kind])
    with torch.no_grad():
        whole = task_model.model(**batch).logits
    found = through_the_head(load_backbone(checkpoint), task, head_of(task_model), batch)
    assert found.shape == whole.shape
    assert whole.std() > 1e-3
    assert (found - whole).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_head_follows_its_backbone_into_another_dtype(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, task_rows: TaskRows, family: str
) -> None:
    checkpoint, task = open_checkpoint(str(tiny_checkpoint(family))), make_task("text-classification")
    task_model = fresh(checkpoint, task, dtype="bfloat16")
    batch = batch_of(checkpoint, task, task_rows[task.kind])
    with torch.no_grad():
        whole = task_model.model(**batch).logits
    backbone = load_backbone(checkpoint, dtype="bfloat16")
    found = through_the_head(backbone, task, {n: t.float() for n, t in head_of(task_model).items()}, batch)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, whole)


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_head_and_arena_are_all_parameters_and_share_none(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, family: str, kind: str
) -> None:
    task_model = load_task_model(open_checkpoint(str(tiny_checkpoint(family))), make_task(kind))
    prefix = base_prefix(task_model.model)
    names = {name for name, _ in task_model.model.named_parameters()}
    inside = {prefix + name for name in task_model.backbone.arena.slots}
    assert set(task_model.head) | inside == names
    assert not set(task_model.head) & inside
    assert not any(name.startswith(prefix) for name in task_model.head)
    assert all(p.requires_grad == (n in task_model.head) for n, p in task_model.model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_reads_the_last_token_whichever_side_is_padded(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, task_rows: TaskRows, family: str
) -> None:
    checkpoint, task = open_checkpoint(str(tiny_checkpoint(family))), make_task("text-classification")
    task_model, tokenizer = fresh(checkpoint, task), load_tokenizer(checkpoint)
    rows = encode(task, tokenizer, task_rows[task.kind])
    with torch.no_grad():
        alone = torch.cat([task_model.model(**collate(tokenizer, [row])).logits for row in rows])
        together = task_model.model(**collate(tokenizer, rows)).logits
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def without_pooler(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint, tmp_path_factory: Any) -> Path:
    """A checkpoint whose base model was saved with no pooler."""
    source, folder = tiny_checkpoint(request.param), tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(source, folder)
    kinds = {"bert": transformers.BertModel, "roberta": transformers.RobertaModel}
    kinds[request.param].from_pretrained(source, add_pooling_layer=False).save_pretrained(folder)
    assert not any("pooler" in name for name in load_file(folder / "model.safetensors"))
    return folder


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_a_pooler_that_the_checkpoint_lacks_belongs_to_the_head(
    without_pooler: Path, make_task: MakeTask, task_rows: TaskRows, kind: str
) -> None:
    checkpoint, task = open_checkpoint(str(without_pooler)), make_task(kind)
    task_model = fresh(checkpoint, task)
    prefix = base_prefix(task_model.model)
    pooled = {name for name, _ in task_model.model.named_parameters() if ".pooler." in name}
    assert {name for name in task_model.head if name.startswith(prefix)} == pooled
    assert not any("pooler" in name for name in task_model.backbone.arena.slots)
    batch = batch_of(checkpoint, task, task_rows[kind])
    with torch.no_grad():
        whole = task_model.model(**batch).logits
    torch.manual_seed(99)  # the shared backbone's own pooler is a random one, and is not used
    found = through_the_head(load_backbone(checkpoint), task, head_of(task_model), batch)
    assert (found - whole).abs().max() < 1e-6


def test_some_kind_needs_the_pooler_of_its_own(without_pooler: Path, make_task: MakeTask) -> None:
    task_model = load_task_model(open_checkpoint(str(without_pooler)), make_task("multiple-choice"))
    assert any(".pooler." in name for name in task_model.head)


def test_a_fresh_head_is_drawn_from_the_random_state(tiny_checkpoint: TinyCheckpoint, make_task: MakeTask) -> None:
    checkpoint, heads = open_checkpoint(str(tiny_checkpoint("bert"))), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(head_of(load_task_model(checkpoint, make_task("text-classification")))["classifier.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_checkpoint_with_a_classifier_of_another_size_gives_its_backbone(
    tiny_checkpoint: TinyCheckpoint, make_task: MakeTask, tmp_path: Path
) -> None:
    source = tiny_checkpoint("bert")
    shutil.copytree(source, tmp_path / "fine-tuned")
    other = transformers.BertForSequenceClassification.from_pretrained(source, num_labels=7)
    other.save_pretrained(tmp_path / "fine-tuned")
    task_model = load_task_model(open_checkpoint(str(tmp_path / "fine-tuned")), make_task("text-classification"))
    assert set(task_model.head) == {"classifier.weight", "classifier.bias"}
    assert task_model.model.get_parameter("classifier.weight").shape == (3, 32)
    base = load_backbone(str(source)).arena
    assert all(torch.equal(task_model.backbone.arena.view(name), base.view(name)) for name in base.slots)


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_the_configuration_carries_labels_and_problem_type(bert: Backbone, make_task: MakeTask, kind: str) -> None:
    task = make_task(kind)
    config = task_config(bert.config, task, 5)
    assert config.num_labels == task.num_outputs
    assert config.problem_type == (None if kind == "multiple-choice" else task.problem_type)
    if kind in ("text-classification", "token-classification"):
        assert config.id2label == dict(enumerate(task.labels))
        assert config.label2id == {label: i for i, label in enumerate(task.labels)}
    assert config.pad_token_id == 0  # the backbone's own
    assert bert.config.num_labels == 2  # a copy was changed
    json.dumps(config.to_dict())


def test_a_backbone_without_a_padding_token_gets_the_tokenizers(make_task: MakeTask) -> None:
    config = transformers.GPT2Config(pad_token_id=None)
    assert task_config(config, make_task("regression"), 9).pad_token_id == 9


def test_a_model_that_hides_its_base_is_refused() -> None:
    with pytest.raises(BackboneError, match="Linear keeps its base model under no name"):
        base_prefix(torch.nn.Linear(1, 1))
