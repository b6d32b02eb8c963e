"""One delta for each of several speakers of a play, and how well each knows its own and the others' unseen speeches.

    python examples/tiny_lm/styles.py --out styles

It holds out the last speeches of each speaker, trains a small language model on everything else (`train.py`), then a
delta for each speaker on that speaker's other speeches, at 0.5% of the weights, with `sparsehub train`'s own code. The
table that it prints is of the held-out speeches: perplexity per token of the packages as written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from datasets import disable_progress_bars
from train import default_text, train_lm

HELD_OUT = 0.15  # of each speaker's speeches, the last ones
DENSITY = 0.005


def turns_of(text: str) -> list[tuple[str, str]]:
    """(speaker, what is said) in order."""
    parts = (turn.strip().partition(":\n") for turn in text.split("\n\n"))
    return [(name, said) for name, colon, said in parts if colon and said.strip()]


def split(text: str, speakers: int) -> tuple[str, dict[str, tuple[list[str], list[str]]]]:
    """The text without what is held out, and for the speakers who say most their speeches: to learn, held out."""
    turns = turns_of(text)
    said: Counter[str] = Counter()
    for name, speech in turns:
        said[name] += len(speech)
    chosen = {name for name, _ in said.most_common(speakers)}
    found: dict[str, tuple[list[str], list[str]]] = {}
    hidden: set[int] = set()
    for name in sorted(chosen):
        places = [place for place, (other, _) in enumerate(turns) if other == name]
        cut = int(len(places) * (1 - HELD_OUT))
        hidden |= set(places[cut:])
        speeches = [f"{name}:\n{turns[place][1]}" for place in places]
        found[name] = (speeches[:cut], speeches[cut:])
    rest = "\n\n".join(f"{name}:\n{said}" for place, (name, said) in enumerate(turns) if place not in hidden)
    return rest, found


def write_rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def train_delta(backbone: Path, name: str, files: dict[str, str], out: Path, epochs: float) -> None:
    """What `sparsehub train --kind text-generation --packing` does."""
    from sparsehub.training import TrainConfig, train

    config = TrainConfig(
        backbone=str(backbone),
        kind="text-generation",
        name=name,
        text=("text",),
        out=str(out),
        density=DENSITY,
        epochs=epochs,
        batch_size=8,
        learning_rate=3e-3,
        max_length=128,
        packing=True,
        device="cpu",
        **files,
    )
    train(config)


def perplexities(backbone: Path, package: Path | None, files: list[str]) -> list[float]:
    """Of each file's texts, under the backbone or under a package on it."""
    from sparsehub.backbone import open_checkpoint
    from sparsehub.backbone.tokenizer import load_tokenizer
    from sparsehub.package import TaskSpec, read_package
    from sparsehub.package.manifest_builder import metric_names
    from sparsehub.package.materialize import task_model_of
    from sparsehub.package.task_model import load_task_model
    from sparsehub.training.data import load_split
    from sparsehub.training.evaluation import judge

    checkpoint = open_checkpoint(str(backbone))
    task = TaskSpec("text-generation", (), "next_token", ("text",), "", 128, metric_names("text-generation", 0))
    model = load_task_model(checkpoint, task) if package is None else task_model_of(read_package(package), checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    return [judge(model.model, task, tokenizer, load_split(task, file))["perplexity"] for file in files]


def table(names: list[str], rows: dict[str, list[float]]) -> str:
    """Markdown: a line for each set of weights, the best of each column in bold."""
    best = [min(column) for column in zip(*rows.values(), strict=True)]
    lines = ["| weights | " + " | ".join(f"{name}'s" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for who, row in rows.items():
        cells = [f"**{v:.2f}**" if v == low else f"{v:.2f}" for v, low in zip(row, best, strict=True)]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model, the rows and the packages")
    parser.add_argument("--text", type=Path, help="a play in plain text")
    parser.add_argument("--speakers", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of the language model")
    parser.add_argument("--epochs", type=float, default=6, help="of each delta")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True)
    text = arguments.text.read_text(encoding="utf-8") if arguments.text else default_text()
    rest, speeches = split(text, arguments.speakers)
    backbone = out / "tiny-lm"
    print(f"held-out perplexity of the model {train_lm(backbone, rest, steps=arguments.steps, say=print):.1f}")
    files, packages = [], {}
    for name, (seen, unseen) in speeches.items():
        task = name.lower().replace(" ", "-")
        train = write_rows(out / f"{task}-train.jsonl", seen)
        files.append(write_rows(out / f"{task}-test.jsonl", unseen))
        packages[name] = out / task
        print(f"{name}: {len(seen)} speeches, {len(unseen)} held out")
        train_delta(backbone, task, {"train": train}, packages[name], arguments.epochs)
    disable_progress_bars()
    rows = {"backbone": perplexities(backbone, None, files)}
    rows |= {f"{name}'s delta": perplexities(backbone, package, files) for name, package in packages.items()}
    print(table(list(speeches), rows))


if __name__ == "__main__":
    main()
