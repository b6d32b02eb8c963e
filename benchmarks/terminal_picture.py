"""The picture of a terminal in README.md: commands that are run, with what they printed, as an SVG."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS, ROWS = 104, 60
PACKAGES = "examples/support/packages"
COMMANDS = (
    f"sparsehub push {PACKAGES}/topic ./hub",
    f"sparsehub push {PACKAGES}/urgency ./hub",
    "sparsehub ls ./hub",
    "sparsehub ask topic,urgency --hub ./hub 'My parcel is a week late' 'I was charged twice this month'",
)
THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (177, 186, 196)],
)  # fmt: skip
# rich's own frame, without the fonts that it would fetch from elsewhere.
FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
    <title>A terminal: tasks are published and asked</title>
    <style>
    .{unique_id}-matrix {{
        font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
        font-variant-east-asian: full-width;
    }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


def draw_terminal(path: Path) -> None:
    """Run the commands in the root of the clone, and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(Path("examples").resolve())
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=True)
            console.print(Text.from_ansi(output(command, Path(folder)).rstrip("\n")))
    console.print()  # the frame ends a little before its last line
    svg = console.export_svg(title="sparsehub", theme=THEME, code_format=FRAME, unique_id="terminal")
    path.write_text(svg, encoding="utf-8")


def output(command: str, folder: Path) -> str:
    """What a command prints in a terminal of this size; progress is left out. Raises where it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    arguments = [sys.executable, "-m", *shlex.split(command)]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        arguments, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        printed = _read(ours)
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}")
    return printed


def _read(end: int) -> str:
    """Everything that comes, until the other end is closed."""
    printed = b""
    try:
        while piece := os.read(end, 1 << 16):
            printed += piece
    except OSError:  # Linux says so where a terminal is closed
        pass
    finally:
        os.close(end)
    return printed.decode().replace("\r\n", "\n")


if __name__ == "__main__":
    draw_terminal(Path(sys.argv[1]))
