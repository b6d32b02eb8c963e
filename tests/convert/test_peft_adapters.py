"""Adapters that PEFT itself initialised, trained and saved, with each option that it has without network and GPU.

`test_lora_options.py` has what is supported, and every option by its saved configuration. LoftQ needs bitsandbytes,
Arrow other adapters, Megatron its package: these three are known by their configurations alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import BdLoraConfig, CordaConfig, KasaConfig, LoraGAConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.peft_types import PeftType
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from sparsehub.backbone import open_checkpoint
from sparsehub.convert.adapters import read_adapter
from sparsehub.convert.extract import Extraction, extract_lossless
from sparsehub.convert.lora_options import REFUSED
from sparsehub.errors import UsageError
from sparsehub.package import read_package
from sparsehub.package.materialize import task_model_of
from sparsehub.package.task_spec import TaskSpec
from tests.convert.test_lora_options import assert_equal, classifier, extracted, randomised

TinyCheckpoint = Callable[[str], Path]
IDS = torch.randint(5, 40, (1, 12), generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore")


def corda(model: Any, config: Any) -> None:
    preprocess_corda(model, config, run_model=lambda: model(input_ids=IDS))


def lora_ga(model: Any, config: Any) -> None:
    model.train()
    preprocess_loraga(
        model, config, lambda: model(input_ids=IDS, labels=torch.tensor([1])).loss.backward()
    )  # what is a step of training to it
    model.eval()


MOVING: dict[str, tuple[dict[str, Any], Callable[[Any, Any], None]]] = {
    "corda, by instruction": ({"corda_config": CordaConfig(corda_method="ipm")}, corda),
    "corda, by knowledge": ({"corda_config": CordaConfig(corda_method="kpm")}, corda),
    "lora_ga": ({"lora_ga_config": LoraGAConfig()}, lora_ga),
}


def trained(base: Path, folder: Path, case: str) -> Any:
    """A classifier whose LoRA was initialised so and then changed; saved as it began, and as it became."""
    options, prepare = MOVING[case]
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=["query", "value"],
        init_lora_weights=case.partition(",")[0],
        **options,
    )
    model = classifier(base)
    prepare(model, config)
    model = peft.get_peft_model(model, config)
    model.save_pretrained(folder / "start")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder / "moved")
    return model


@pytest.mark.parametrize("case", MOVING)
def test_a_real_adapter_that_moved_the_backbone_is_refused_and_both_ways_out_are_what_was_trained(
    tiny_checkpoint: TinyCheckpoint, task: TaskSpec, tmp_path: Path, case: str
) -> None:
    base = tiny_checkpoint("bert")
    model = trained(base, tmp_path, case)
    with pytest.raises(UsageError, match=f'init_lora_weights: "{case.partition(",")[0]}".*or save it as a plain LoRA'):
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


OPTIONS: dict[str, dict[str, Any]] = {
    "target_parameters": {
        "target_modules": [],
        "target_parameters": ["encoder.layer.0.attention.self.query.weight"],
    },
    "use_qalora": {"use_qalora": True, "qalora_group_size": 8},
    "use_bdlora": {"use_bdlora": BdLoraConfig(nblocks=2, target_modules_bd_a=["query"], target_modules_bd_b=["value"])},
    "kasa_config": {"kasa_config": KasaConfig()},
    "velora_config": {"velora_config": VeloraConfig(num_groups=4)},
    "monteclora_config": {"monteclora_config": MontecloraConfig()},
}
GENERATING: dict[str, dict[str, Any]] = {
    "alora_invocation_tokens": {"alora_invocation_tokens": [5]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "ensure_weight_tying": {"ensure_weight_tying": True, "target_modules": ["embed_tokens"]},
}


@pytest.mark.parametrize("option", [*OPTIONS, *GENERATING])
def test_a_real_adapter_that_is_more_than_a_product_is_refused_by_name(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, option: str
) -> None:
    generates = option in GENERATING
    base = tiny_checkpoint("llama" if generates else "bert")
    model = AutoModelForCausalLM.from_pretrained(base) if generates else classifier(base)
    options = {"target_modules": ["q_proj"] if generates else ["query", "value"], **{**OPTIONS, **GENERATING}[option]}
    config = peft.LoraConfig(task_type="CAUSAL_LM" if generates else "SEQ_CLS", r=4, **options)
    randomised(peft.get_peft_model(model, config)).save_pretrained(tmp_path / "lora")
    with pytest.raises(UsageError, match=rf"with {option} is more .*found: {option}: .*to do: merge it"):
        read_adapter(tmp_path / "lora")


def test_every_option_was_tried_with_a_real_adapter() -> None:
    elsewhere = {"use_dora", "bias", "lora_bias", "trainable_token_indices"}  # in test_lora_options.py
    impossible = {"arrow_config", "megatron_config"}
    assert set(REFUSED) == OPTIONS.keys() | GENERATING.keys() | elsewhere | impossible


@pytest.mark.parametrize("kind", sorted({kind.value for kind in PeftType} - {"LORA", "SHIRA", "SUPERTUNING"}))
def test_every_other_method_of_the_installed_peft_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    save_file({"base_model.model.a.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=f"cannot become a package; found: {kind}; .*to do: merge it into its model"):
        read_adapter(tmp_path)
