"""A hook of mkdocs: the notebooks of `examples/` are pages of the site, as text and code without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def on_files(files: Any, *, config: Any) -> Any:
    """Called by mkdocs with the site's files; adds a page for each notebook, `examples/<name>.md`."""
    from mkdocs.structure.files import File

    for path in sorted(EXAMPLES.glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page_of(path, config.repo_url)))
    return files


def page_of(path: Path, repository: str) -> str:
    """A notebook as Markdown. Its links to the docs and to other notebooks lead to the site's pages."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(_cell(cell) for cell in cells)
    text = text.replace("](../docs/", "](../").replace(".ipynb)", ".md)")
    title, _, rest = text.partition("\n")
    notebook = f"[examples/{path.name}]({repository}/blob/main/examples/{path.name})"
    return f"{title}\n\nThis page is the notebook {notebook}.\n{rest}\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
