"""Every code block of README.md and of the docs works: commands run, in their order, on a small backbone and a few rows
of the example data; requests are answered; Python runs. What needs a cluster or a container is held to its files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import shutil
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from sparsehub.backbone.checkpoint import INSTALLED
from sparsehub.cli import main
from tests.support.pages import PAGES, ROOT, Block, Curl, blocks, commands

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
README, HUB, SERVING = ROOT / "README.md", ROOT / "docs" / "hub.md", ROOT / "docs" / "serving.md"
GENERATION, METHODS, EXTRACTION = (ROOT / "docs" / f"{name}.md" for name in ("generation", "methods", "extraction"))
STAND_IN = "small_backbone"  # a package with a tiny model: what the pages' backbone is here
LABELS, ROWS = 3, 4  # of the example data, and rows of a label in each split
# Places that a reader has, and quicker runs of what takes a reader minutes.
INSTEAD = {
    "s3://bucket/team": "./bucket",
    "hf://my-team": "./my-team",
    "--epochs 6": "--epochs 1",
    "--epochs 4": "--epochs 1",
    "--refits 5 --seeds 3": "--refits 1 --seeds 1",
}
# What a page takes for granted beside what README.md's commands leave.
BEFORE = {
    HUB: [
        "sparsehub push packages/topic s3://bucket/team --version 1.0.0",
        "sparsehub push packages/urgency s3://bucket/team --version 1.0.0",
        "sparsehub tag topic@1.0.0 stable --hub ./hub",
    ],
    SERVING: ["rm keys.json", "sparsehub catalog remove ./hub#production topic"],
    ROOT / "docs" / "quickstart.md": ["rm packages/topic hub full"],
    ROOT / "docs" / "settings.md": ["rm packages/urgency"],
    ROOT / "docs" / "training.md": ["rm packages/urgency"],
}
ENDLESS = ("serve",)  # verbs that run until they are stopped: parsed here, started in other tests
ONCE = {METHODS: ("stability",)}  # verbs that take a while, and run with other flags on another page


# What holds without running anything


def test_every_block_says_its_language() -> None:
    assert {block.language for block in blocks()} == {"", "sh", "python", "json", "yaml"}


@pytest.mark.parametrize("block", blocks("json", "yaml"), ids=str)
def test_documents_parse(block: Block) -> None:
    assert (json.loads if block.language == "json" else yaml.safe_load)(block.text)


def test_the_policy_of_the_page_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsehub.hub.user_settings import read_policy

    (block,) = (block for block in blocks("yaml") if block.page == HUB)
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(block.text)["policy"]))
    for name in ("team.pub", "root.pem"):
        (tmp_path / name).write_text("-----BEGIN PUBLIC KEY-----\n")
    assert read_policy(file).require_signature


def _pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word, value in pairwise(words):
        if word == "-c":
            assert (ROOT / value).is_file(), value
        elif word == "-e":
            assert set(Requirement(f"sparsehub{value[1:]}").extras) <= project["optional-dependencies"].keys(), value
    for word in words[2:]:
        if not word.startswith(("-", ".")) and not (ROOT / word).exists():
            assert Requirement(word).name != "sparsehub", "it is installed from a clone"


def _python(words: list[str]) -> None:
    if words[1] == "-m" and words[2] != "venv":
        assert any((ROOT / words[2].replace(".", "/")).with_suffix(end).exists() for end in (".py", "")), words[2]
    elif words[1] != "-m":
        assert (ROOT / words[1]).is_file(), words[1]


def _docker(words: list[str]) -> None:
    text = (ROOT / words[words.index("-f") + 1]).read_text()
    assert re.search(rf"^FROM .+ AS {words[words.index('--target') + 1]}$", text, re.MULTILINE | re.IGNORECASE)


def _kubectl(words: list[str]) -> None:
    assert words[1:3] == ["apply", "-k"] and (ROOT / words[3] / "kustomization.yaml").is_file()


def _make(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def _serve(words: list[str]) -> None:
    module, _, name = words[2].partition(":")
    assert words[1] == "run" and f"{name} " in f"{(ROOT / module.replace('.', '/')).with_suffix('.py').read_text()} "


def _export(words: list[str]) -> None:
    from serving.settings import Settings
    from sparsehub.settings import settings_of

    variables = {setting.variable for setting in settings_of(Settings)}
    assert {word.partition("=")[0] for word in words[1:]} <= variables


def _any(words: list[str]) -> None:
    """Other people's programs, with what is theirs."""


HELD: dict[str, Callable[[list[str]], None]] = {
    "pip": _pip,
    "python": _python,
    "python3": _python,
    "docker": _docker,
    "kubectl": _kubectl,
    "make": _make,
    "serve": _serve,
    "export": _export,
    **dict.fromkeys(("bentoml", "openssl", "git", "cd", "."), _any),
    **dict.fromkeys(("sparsehub", "curl"), _any),  # these run, below
}


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_every_command_names_what_is_there(block: Block) -> None:
    for command in (part for line in block.commands for part in line.split(" && ")):
        words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command))
        assert words[0] in HELD, f"{command}: a command that no test knows"
        HELD[words[0]](words)


# Commands that run


@pytest.fixture(scope="module")
def small_world(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples, three labels and a few rows of each, and with a backbone that stands in."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / STAND_IN).mkdir()
    (folder / STAND_IN / "__init__.py").touch()
    shutil.copytree(tiny_checkpoint("bert"), folder / STAND_IN / "model")
    for name in ("topic", "reply", "urgency"):
        for split in ("train", "validation", "test"):
            lines = (ROOT / f"examples/support/{name}/{split}.jsonl").read_text(encoding="utf-8").splitlines()
            place = folder / f"examples/support/{name}/{split}.jsonl"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("".join(f"{json.dumps(row)}\n" for row in _few([json.loads(line) for line in lines])))
    settings = (ROOT / "examples/urgency.yaml").read_text().replace("epochs: 6", "epochs: 3")
    # without rows that choose the epoch there is a change to export, however little was learned
    settings = "".join(line for line in settings.splitlines(keepends=True) if not line.startswith("validation:"))
    (folder / "examples/urgency.yaml").write_text(settings)
    for split, source in (("train", "train"), ("dev", "validation"), ("test", "test")):
        place = folder / "FOLDER" / f"{split}.jsonl"
        place.parent.mkdir(exist_ok=True)
        shutil.copy(folder / f"examples/support/reply/{source}.jsonl", place)
    return folder


def _few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few rows of the first labels; of numbers as many rows."""
    if not isinstance(rows[0]["label"], str):
        return rows[: LABELS * ROWS]
    labels = sorted({row["label"] for row in rows})[:LABELS]
    return [row for label in labels for row in [row for row in rows if row["label"] == label][:ROWS]]


@pytest.fixture(scope="module")
def after_readme(small_world: Path) -> Path:
    """The folder, once every command of README.md has run in it."""
    run_all(README, small_world)
    return small_world


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The folder is the current one, and the backbone of the pages is the one that stands in for it there."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(INSTALLED, MINILM, (STAND_IN, "model"))
        yield


def run_all(page: Path, folder: Path) -> None:
    for command in [*BEFORE.get(page, []), *commands(page)]:
        for written, meant in INSTEAD.items():
            command = command.replace(written, meant)
        words = shlex.split(command)
        with inside(folder):
            if words[0] == "rm":
                for name in words[1:]:
                    shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
            elif words[0] == "sparsehub" and words[1] not in (*ENDLESS, *ONCE.get(page, ())):
                run(words[1:])


def run(arguments: list[str]) -> None:
    """A command in this process; one that fails, fails the test with what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, f"sparsehub {shlex.join(arguments)}\n{said.getvalue()}"


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(after_readme: Path) -> None:
    for made in ("packages/topic", "packages/half", "shira/urgency", "hub", "full/topic", "overlap.png", "keys.json"):
        assert (after_readme / made).exists(), made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "hub", "methods", "quickstart", "serving", "settings", "training"])
def test_the_commands_of_a_page_run_after_those_of_the_readme(
    name: str, after_readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))  # one page sweeps it
    folder = tmp_path / "page"
    shutil.copytree(after_readme, folder)
    if name == "hub":
        _write_keys(folder)
    if name == "data":
        _write_table(folder)
    run_all(ROOT / "docs" / f"{name}.md", folder)


def _write_table(folder: Path) -> None:
    """The table that the page begins with, split as the page splits it."""
    lines = (ROOT / "examples/support/topic/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted((row["label"], row["text"]) for row in map(json.loads, lines))[: 24 * LABELS]
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("queue", "message"), *rows])
    with inside(folder):
        parts = execute(python_of(ROOT / "docs" / "data.md"))[0]["parts"]
    assert all(parts.values()) and sum(map(len, parts.values())) == len(rows)


def _write_keys(folder: Path) -> None:
    """What the page's two lines of openssl write."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "team.pem").write_bytes(private)
    (folder / "team.pub").write_bytes(public)


def test_pages_with_commands_are_run() -> None:
    run_here = {
        README,
        HUB,
        SERVING,
        METHODS,
        GENERATION,
        *(ROOT / f"docs/{n}.md" for n in ("data", "quickstart", "settings", "training")),
    }
    served = {page for page in PAGES if any(c.startswith("sparsehub serve ") for c in commands(page))}
    assert {page for page in PAGES if any(c.startswith("sparsehub ") for c in commands(page))} - run_here <= served


# Requests and Python


@pytest.fixture(scope="module")
def endpoint(tiny_tasks: Any) -> Iterator[Any]:
    """Serves tasks with the names that the pages ask."""
    from serving.request.metrics import Metrics
    from serving.settings import Settings
    from sparsehub import Engine, load_backbone, read_package
    from tests.serving.conftest import listening

    metrics = Metrics()
    with Engine(load_backbone(str(tiny_tasks.folder)), None, metrics) as engine:
        for name, kind in (("topic", "text-classification"), ("urgency", "regression"), ("support-refund", "")):
            engine.add(read_package(tiny_tasks.write(name, kind or "text-classification", seed=len(name))))
        with listening(engine, Settings(backbone=MINILM, hub="hub"), metrics) as server:
            yield server


@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page) if c.startswith("curl ")])
def test_a_request_of_a_page_is_answered(command: str, endpoint: Any) -> None:
    request = Curl.of(command)
    if "/v1/admin/" in request.path:  # of a catalogue, which this endpoint has none of
        assert request.path in endpoint.client.get("/openapi.json").json()["paths"]
        return
    sent = {"content": request.body, "headers": {"content-type": "application/json"}} if request.body else {}
    answer = endpoint.client.request("POST" if request.body else "GET", request.path, **sent)
    assert answer.status_code == 200, answer.text


def python_of(page: Path, *having: str) -> str:
    """The one Python block of a page in which all of these words stand."""
    (block,) = (b for b in blocks("python") if b.page == page and all(word in b.text for word in having))
    return block.text


def execute(text: str) -> tuple[dict[str, Any], str]:
    """Run a block in the current folder; returns its names and what it printed."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "a block of a page", "exec"), names)
    return names, printed.getvalue()


@pytest.mark.slow
def test_the_first_block_of_the_readme_answers_rightly(real_backbone: str) -> None:
    with contextlib.chdir(ROOT):
        printed = execute(python_of(README, "classify_many"))[1].splitlines()
    assert printed[0].startswith("My parcel is a week late -> delivery_delay ")
    assert printed[1].startswith("I was charged twice this month -> billing_error ")


@pytest.mark.slow
def test_the_python_of_the_pages_runs(after_readme: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    shutil.copytree(after_readme, folder)
    with inside(folder):
        execute(python_of(README, "open_hub"))
    for page in ("index", "settings"):
        shutil.rmtree(folder / "packages" / "topic")
        for split in ("train", "test"):
            shutil.copy(folder / f"examples/support/topic/{split}.jsonl", folder)
        with inside(folder):
            execute(python_of(ROOT / "docs" / f"{page}.md"))
        assert (folder / "packages/topic/sparsehub.json").is_file()


@pytest.mark.slow
def test_the_python_of_the_endpoint_asks_it(endpoint: Any) -> None:
    names, _ = execute(python_of(SERVING, "OpenAI(").replace("localhost:3000", f"127.0.0.1:{endpoint.port}"))
    assert names["answer"].model_extra["task"] == "topic@1.0.0"


@pytest.mark.slow
def test_the_page_on_text_generation_runs(tiny_language: Any, tmp_path: Path) -> None:
    from serving.request.metrics import Metrics
    from serving.settings import Settings
    from sparsehub import Engine, load_backbone, read_package
    from sparsehub.engine import GenerationLimits
    from tests.serving.conftest import listening

    shutil.copytree(tiny_language.folder, tmp_path / "tiny-lm")
    voice = re.findall(r"^(.+):$", tiny_language.text, re.MULTILINE)[0]
    lines = [json.dumps({"text": said}) for said in tiny_language.speeches(voice)[:24]]
    for name, part in (("sailor", lines[:16]), ("held-out", lines[16:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    run_all(GENERATION, tmp_path)
    with contextlib.chdir(tmp_path):
        assert execute(python_of(GENERATION, "GenerationLimits"))[1]
    backbone, limits, metrics = load_backbone(str(tmp_path / "tiny-lm")), GenerationLimits(cache_tokens=1024), Metrics()
    with Engine(backbone, None, metrics, generation=limits) as engine:
        engine.add(read_package(tmp_path / "packages" / "sailor"))
        with listening(engine, Settings(backbone="tiny-lm", hub="hub"), metrics) as server:
            here = f"127.0.0.1:{server.port}"
            assert execute(python_of(GENERATION, "openai.").replace("localhost:3000", here))[1]


@pytest.mark.slow
def test_an_adapter_is_merged_as_the_page_says(tiny_checkpoint: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint("bert"))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "my-adapter")
    with contextlib.chdir(tmp_path):
        execute(python_of(EXTRACTION))
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))
def test_what_contributing_shows_is_our_code(block: str) -> None:
    shown = [line.strip() for line in textwrap.dedent(block).strip().splitlines()]
    ours = (path.read_text(encoding="utf-8") for path in (ROOT / "sparsehub").rglob("*.py"))
    assert any("\n".join(shown) in "\n".join(line.strip() for line in text.splitlines()) for text in ours), shown[0]
