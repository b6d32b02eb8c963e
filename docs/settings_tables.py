"""Writes the tables of docs/settings.md from the classes that define the settings; a test holds the page to it."""

from __future__ import annotations

from pathlib import Path

from serving.settings import Settings
from sparsehub.settings import REQUIRED, Configuration, Setting, settings_of
from sparsehub.training import TrainConfig

PAGE = Path(__file__).parent / "settings.md"
TABLES: dict[str, type[Configuration]] = {"training": TrainConfig, "serving": Settings}


def rendered(page: str) -> str:
    """The page with its tables written anew, each between the two comments with its name."""
    for name, kind in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = before + "\n".join([begin, *_table(kind), end]) + after
    return page


def _table(kind: type[Configuration]) -> list[str]:
    other = "YAML key" if kind is TrainConfig else "variable"
    lines = [_line(setting, setting.name if kind is TrainConfig else setting.variable) for setting in settings_of(kind)]
    return [f"| flag | {other} | default | values | |", "|---|---|---|---|---|", *lines]


def _line(setting: Setting, other: str) -> str:
    names = [f"`{name}`" for name in setting.choices] or [setting.range]
    default = "required" if setting.default is REQUIRED else setting.default_text
    text = setting.help.replace("|", "\\|").replace("*", "\\*")
    return f"| `{setting.flag_name}` | `{other}` | {default} | {' '.join(names)} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
