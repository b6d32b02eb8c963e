"""A training configuration from a YAML file and the command line's flags: `sparsehub train` and `stability` read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparsehub.errors import UsageError
from sparsehub.settings import Naming, errors_named, settings_of, split_names
from sparsehub.training.config import TrainConfig


def load_config(path: Path | None, given: Mapping[str, Any], naming: Naming | None = None) -> TrainConfig:
    """A configuration from a YAML file and what was given beside it, by setting; what was given wins.

    naming: what errors call the settings that were given. Raises `UsageError`.
    """
    table = {} if path is None else _read_yaml(path)
    given = {name: value for name, value in given.items() if value is not None}
    beside = naming or Naming("train", str)

    def name_of(setting: str) -> str:
        return f"{path}.{setting}" if setting in table and setting not in given else beside.name(setting)

    with errors_named(Naming(str(path) if path else beside.place, name_of)):
        return TrainConfig(**_from_text({**table, **given}))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", found=f"working folder {Path.cwd()}")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML", found=str(error)) from error
    if not isinstance(table, dict):
        raise UsageError(f"{path} must hold one mapping", found=type(table).__name__)
    return {str(key): value for key, value in table.items()}


def _from_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists that were written as one text, and numbers that YAML takes for texts: 1e-3 has no dot."""
    numbers = {setting.name for setting in settings_of(TrainConfig) if setting.type is float}
    return {
        name: _number(value) if name in numbers else value for name, value in split_names(TrainConfig, values).items()
    }


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
