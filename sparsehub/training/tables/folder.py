"""A folder of files that are called by their splits: train.csv, validation.csv, test.csv, or shards of them."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from sparsehub.errors import DataError
from sparsehub.training.tables.files import FILES, format_of

_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_NAMES |= {"dev": "validation", "test": "test", "testing": "test"}
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})")


def splits_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each split, in their order: in the folder, or in its folder `data`; of other files nothing.

    Raises `DataError` where two files could be one split, or where a shard is missing.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(path for place in (folder, folder / "data") if place.is_dir() for path in place.iterdir()):
        split = _NAMES.get(_stem(path))
        if split and path.is_file() and format_of(path.name):
            found.setdefault(split, []).append(path)
    return {split: _checked(folder, split, paths) for split, paths in found.items()}


def split_files(folder: Path, split: str) -> tuple[Path, ...] | None:
    """The files of one split; None where the folder has no files that are called by splits.

    Raises `DataError` where it has some, and none for this split.
    """
    splits = splits_of(folder)
    wanted = _NAMES.get(split, split)
    if wanted in splits or not splits:
        return splits.get(wanted)
    near = difflib.get_close_matches(split, splits, n=1)
    raise DataError(
        f"{folder}:{split} cannot be read as a data set",
        found=f"splits {', '.join(sorted(splits))}",
        fix=f"did you mean {near[0]!r}?" if near else None,
    )


def whole_folder(folder: Path) -> dict[str, str]:
    """`folder:split` for every split of a folder that was given as the training rows; raises `DataError`."""
    splits = splits_of(folder)
    if "train" not in splits:
        names = sorted(path.name for path in folder.iterdir())
        raise DataError(
            f"the folder {folder} has no training rows",
            found=", ".join(names)[:300] or "no files",
            expected=f"a file called train ({FILES}), and validation and test beside it",
            fix="name the files one by one: --train, --validation, --test",
        )
    return {split: f"{folder}:{split}" for split in splits}


def _stem(path: Path) -> str:
    """`train` of train-00000-of-00002.jsonl.gz."""
    name = path.name.lower().partition(".")[0]
    shard = _SHARD.fullmatch(name)
    return shard[1] if shard else name


def _checked(folder: Path, split: str, paths: list[Path]) -> tuple[Path, ...]:
    shards = [_SHARD.match(path.name.lower()) for path in paths]
    numbers = [(shard[1], int(shard[2]), int(shard[3])) for shard in shards if shard]
    if len(paths) == 1 and not numbers:
        return tuple(paths)
    name, _, count = numbers[0] if numbers else ("", 0, 0)
    whole = bool(numbers) and numbers == [(name, number, count) for number in range(count)]
    if not whole or len({path.suffix for path in paths}) > 1:
        found = ", ".join(str(path.relative_to(folder)) for path in paths)[:300]
        fix = "keep one file, or all of its shards; or name the file"
        raise DataError(f"{folder} has not one file for {split}", found=found, expected="one", fix=fix)
    return tuple(paths)
