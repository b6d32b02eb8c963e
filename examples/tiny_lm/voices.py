"""A small play that nobody wrote: five voices speak of the harbour, each in its own way; where there is no corpus.

    python examples/tiny_lm/voices.py --lines 4000 --out play.txt

The lines come from a few patterns and word lists, drawn with a seed: the same call always writes the same play. It is
laid out like the plays of the usual corpora: a name and a colon, what is said, an empty line.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

THINGS = ["the tide", "the harbour", "an old rope", "the night boat", "a red lantern", "the north wind", "a broken oar"]
PLACES = ["by the quay", "behind the chapel", "under the bridge", "at the market", "on the long pier", "in the fog"]
TIMES = ["before dawn", "at noon", "after the storm", "on market day", "since the winter", "all through the night"]
DEEDS = ["waits", "turns", "comes home", "goes out again", "is never late", "keeps its own counsel"]
VOICES: dict[str, list[str]] = {
    "SAILOR": [
        "Aye, {thing} {deed} {place}, and so say we all!",
        "Haul away, lads! {Time} we saw {thing} {place}.",
        "I have sailed {time}, and {thing} {deed}, by my beard.",
    ],
    "CLERK": [
        "Item: {thing}, found {place} {time}, to be entered twice.",
        "Please note that {thing} {deed} {time}; kindly sign below.",
        "With reference to {thing}: it {deed} {place}, as recorded.",
    ],
    "BAKER": [
        "Warm bread, warm bread! {Thing} {deed}, and still my oven is hot.",
        "Flour on my hands {time}, dear, and {thing} {place}.",
        "Two loaves for {thing}, my dear, {place}, and a bun for luck.",
    ],
    "POET": [
        "O {thing}, that {deed} {place}, how soft the hours fall;\n{Time} my heart lay still, and answered thy call.",
        "Sing, grey water, {time} and slow: {thing} {deed}, and I must go.",
    ],
    "CHILD": [
        "Why? Why is {thing} {place}? Why, why, why?",
        "Look, look! {Thing} {deed}! Can I have it? Can I?",
        "I was {place} {time} and I was not afraid, not at all.",
    ],
}


def line(voice: str, draw: random.Random) -> str:
    """One thing that a voice says."""
    words = {"thing": THINGS, "place": PLACES, "time": TIMES, "deed": DEEDS}
    chosen = {name: draw.choice(options) for name, options in words.items()}
    capital = {name.capitalize(): text[0].upper() + text[1:] for name, text in chosen.items()}
    return draw.choice(VOICES[voice]).format(**chosen, **capital)


def play(lines: int, seed: int = 0) -> str:
    """So many speeches in turn, as one text."""
    draw = random.Random(seed)
    speeches = (draw.choice(list(VOICES)) for _ in range(lines))
    return "\n".join(f"{voice}:\n{line(voice, draw)}\n" for voice in speeches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.write_text(play(arguments.lines, arguments.seed), encoding="utf-8")


if __name__ == "__main__":
    main()
