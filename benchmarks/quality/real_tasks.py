"""The main job on real data: train five public tasks, compare with baselines, serve all of them, compare every answer.

    python -m benchmarks.quality.real_tasks train --data FOLDER --out RUN   # packages, head-only baselines, a table
    python -m benchmarks.quality.real_tasks serve --data FOLDER --out RUN   # one endpoint, 16 clients, 200 rows a task

FOLDER holds trec, rte, stsb, copa and wnut17_ner, each with train.jsonl, dev.jsonl and test.jsonl.
`serve` compares every answer with the materialised model, loaded by plain transformers and run row by row.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from sparsehub.package import read_manifest
from sparsehub.training import TrainConfig, fit, train

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
CLI = (sys.executable, "-m", "sparsehub")
RESULTS = Path(__file__).parents[1] / "results"
ROWS, CLIENTS, TOLERANCE = 200, 16, 1e-4


@dataclass(frozen=True)
class RealTask:
    """A task and the settings that were found to suit it."""

    folder: str
    kind: str
    text: tuple[str, ...]
    settings: dict[str, Any]
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.replace("_", "-")


TASKS = (
    RealTask("trec", "text-classification", ("text",), {"epochs": 3}),
    RealTask(
        "rte",
        "text-classification",
        ("text_a", "text_b"),
        {"epochs": 4, "max_length": 64, "precision": "bfloat16"},
    ),
    RealTask("stsb", "regression", ("text_a", "text_b"), {"epochs": 2}),
    RealTask("copa", "multiple-choice", ("text", "question"), {"epochs": 15, "max_length": 64}, ("choice1", "choice2")),
    RealTask("wnut17_ner", "token-classification", ("tokens",), {"epochs": 2}),
)


def config_of(task: RealTask, data: Path, out: Path) -> TrainConfig:
    """What `sparsehub train` would be told."""
    folder = data / task.folder
    return TrainConfig(
        backbone=BACKBONE,
        kind=task.kind,
        name=task.name,
        version="1.0.0",
        text=task.text,
        choices=task.choices,
        train=str(folder / "train.jsonl"),
        validation=str(folder / "dev.jsonl"),
        test=str(folder / "test.jsonl"),
        out=str(out / "packages" / task.name),
        **task.settings,
    )


def train_all(data: Path, out: Path, only: list[str]) -> None:
    """Train what is not there yet, and the head alone beside it; then render the table."""
    for task in TASKS:
        config = config_of(task, data, out)
        if only and task.name not in only:
            continue
        if not Path(config.out).exists():
            train(config, report=say)
        head_file = out / "head-only" / f"{task.name}.json"
        if not head_file.exists():
            run = out / "head-only" / task.name
            metrics = fit(replace(config, density=0.0), run, report=say).metrics
            head_file.write_text(json.dumps(metrics))
    render_training(out)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def render_training(out: Path) -> None:
    """One line per task: package, head alone, majority."""
    lines = [
        "| task | kind | metric | package | head only | majority | entries | bytes | an entry, no head, no card |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        folder = out / "packages" / task.name
        if not folder.exists():
            continue
        manifest = read_manifest(folder)
        head = json.loads((out / "head-only" / f"{task.name}.json").read_text())
        size = sum(file.stat().st_size for file in folder.iterdir())
        beside = sum(manifest.files[name].size for name in ("head.safetensors", "README.md"))
        for metric in manifest.task.metrics[:2]:
            values = [manifest.metrics["test"], head["test"], manifest.metrics["test (majority)"]]
            cells = " | ".join(f"{value.get(metric, 0.0):.4f}" for value in values)
            per_entry = (size - beside) / manifest.nnz
            what = f"{task.name} | {task.kind} | {metric}"
            lines.append(f"| {what} | {cells} | {manifest.nnz:,} | {size:,} | {per_entry:.2f} |")
    write("real_tasks", "Five public tasks on all-MiniLM-L6-v2, test split, density 0.5%, selection by `sam`", lines)


def serve_all(data: Path, out: Path, port: int) -> None:
    """All five in one process; every answer beside the materialised model's."""
    expected = {task.name: materialised(task, data, out) for task in TASKS}
    packages = [str(out / "packages" / task.name) for task in TASKS]
    command = [*CLI, "serve", "--backbone", BACKBONE, "--port", str(port)]
    for package in packages:
        command += ["--task", package]
    with (out / "endpoint.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", process)
        answers, seconds = ask_all(data, port)
    finally:
        process.terminate()
        process.wait(60)
    render_serving(expected, answers, seconds)


def rows_of(task: RealTask, data: Path) -> list[dict[str, Any]]:
    lines = (data / task.folder / "test.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")[:ROWS]
    fields = (*task.text, *task.choices)
    return [{field: json.loads(line)[field] for field in fields} for line in lines]


def materialised(task: RealTask, data: Path, out: Path) -> list[Any]:
    """Scores by plain transformers: the checkpoint that `sparsehub materialize` wrote, one row at a time."""
    folder = out / "full" / task.name
    if not folder.exists():
        subprocess.run(
            [*CLI, "materialize", str(out / "packages" / task.name), "--backbone", BACKBONE, "--out", str(folder)],
            check=True,
        )
    auto = {"multiple-choice": "MultipleChoice", "token-classification": "TokenClassification"}
    name = "AutoModelFor" + auto.get(task.kind, "SequenceClassification")
    model = getattr(transformers, name).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [plain_scores(task, model, tokenizer, row) for row in rows_of(task, data)]


def plain_scores(task: RealTask, model: Any, tokenizer: Any, row: dict[str, Any]) -> Any:
    """What a user of transformers would write."""
    if task.kind == "multiple-choice":
        context = " ".join(row[field] for field in task.text)
        batch = tokenizer(
            [context] * 2, [row[c] for c in task.choices], truncation=True, padding=True, return_tensors="pt"
        )
        return model(**{k: v.unsqueeze(0) for k, v in batch.items()}).logits.softmax(-1)[0].tolist()
    if task.kind == "token-classification":
        batch = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, return_tensors="pt")
        words, scores = batch.word_ids(), model(**batch).logits.softmax(-1)[0]
        firsts = [i for i, word in enumerate(words) if word is not None and words.index(word) == i]
        return [scores[i].tolist() for i in firsts]
    batch = tokenizer(*(row[field] for field in task.text), truncation=True, return_tensors="pt")
    logits = model(**batch).logits[0]
    return logits.tolist() if task.kind == "regression" else logits.softmax(-1).tolist()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        if process.poll() is not None:
            raise SystemExit("the endpoint ended; see endpoint.log")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the endpoint did not start; see endpoint.log")


def ask_all(data: Path, port: int) -> tuple[dict[str, list[Any]], float]:
    """Every row its own request, the tasks interleaved, sixteen clients at once."""
    rows = {task.name: rows_of(task, data) for task in TASKS}
    jobs = [(task, i) for i in range(ROWS) for task in TASKS if i < len(rows[task.name])]

    def ask(job: tuple[RealTask, int]) -> Any:
        task, i = job
        route = "score" if task.kind == "regression" else "classify"
        body = {"model": task.name, "input": [rows[task.name][i]], "truncate_prompt_tokens": -1}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/{route}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            entry = json.load(response)["data"][0]
        if "words" in entry:
            return [word["probs"] for word in entry["words"]]
        return [entry["score"]] if "score" in entry else entry["probs"]

    start = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(ask, jobs))
    seconds = time.monotonic() - start
    answers: dict[str, list[Any]] = {task.name: [None] * len(rows[task.name]) for task in TASKS}
    for (task, i), result in zip(jobs, results, strict=True):
        answers[task.name][i] = result
    return answers, seconds


def render_serving(expected: dict[str, list[Any]], answers: dict[str, list[Any]], seconds: float) -> None:
    lines = ["| task | rows | largest difference of a score | labels that differ, scores further apart than that |"]
    lines.append("|---|---|---|---|")
    failed = []
    for name, wanted in expected.items():
        largest, wrong = 0.0, 0
        for want, got in zip(wanted, answers[name], strict=True):
            pairs = list(zip(want, got, strict=True)) if isinstance(want[0], list) else [(want, got)]
            for a, b in pairs:
                largest = max(largest, *(abs(x - y) for x, y in zip(a, b, strict=True)))
                wrong += differs(a, b)
        lines.append(f"| {name} | {len(wanted)} | {largest:.1e} | {wrong} |")
        failed += [name] if largest > TOLERANCE or wrong else []
    count = sum(len(wanted) for wanted in expected.values())
    lines.append(
        f"\n{count} requests of one row each, {CLIENTS} clients, {seconds:.1f} s: {count / seconds:.0f} a second."
    )
    write("real_serving", f"Served answers beside materialised models, tolerance {TOLERANCE:g}", lines)
    if failed:
        raise SystemExit(f"over the tolerance: {', '.join(failed)}")


def differs(a: list[float], b: list[float]) -> bool:
    """Whether two score lists name different labels although the best two scores are clearly apart."""
    if len(a) < 2:
        return False
    first, second = sorted(a, reverse=True)[:2]
    return first - second > TOLERANCE and a.index(max(a)) != b.index(max(b))


def write(name: str, title: str, lines: list[str]) -> None:
    """The rendered table with machine, versions and command."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    head = [f"# {title}", "", f"{machine}; {versions}; {time.strftime('%Y-%m-%d')}", ""]
    verb = "train" if name == "real_tasks" else "serve"
    command = f"`python -m benchmarks.quality.real_tasks {verb} --data FOLDER --out RUN`"
    text = "\n".join([*head, *lines, "", command, ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "serve"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--port", type=int, default=3210)
    parser.add_argument("--only", nargs="*", default=[], help="train these tasks only")
    arguments = parser.parse_args()
    if not (arguments.data / "trec").is_dir():
        raise SystemExit(f"{arguments.data} does not hold the data sets")
    if arguments.verb == "train":
        train_all(arguments.data, arguments.out, arguments.only)
    else:
        serve_all(arguments.data, arguments.out, arguments.port)


if __name__ == "__main__":
    main()
