"""How the page looks: what Gradio's theme does not say. Nothing is fetched."""

from __future__ import annotations

import gradio as gr

_FONT = ["system-ui", "sans-serif"]  # what the machine has


def console_theme() -> gr.themes.Base:
    """Gradio's theme, with contrasts of 4.5 and more where its own are less."""
    base = gr.themes.Default(primary_hue="teal", font=_FONT, font_mono=["ui-monospace", "monospace"])
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        color_accent="*primary_700",
    )


STYLE = """
.gradio-container {width: 100% !important; max-width: 1280px !important; margin: 0 auto}
footer {display: none !important}
#head {display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px}
#head h1 {font-size: 20px; font-weight: 650; margin: 0}
#head h1 a {color: inherit; text-decoration: none}
#head h1 a:hover {text-decoration: underline}
#head code {overflow-wrap: anywhere}
#head .dim, .who, #catalog-said p {color: var(--body-text-color-subdued)}
#head form {display: inline; margin: 0}
#tasks *, #catalog * {font-family: var(--font)}
#tasks th .header {font-size: 13px}
#tasks th .cell-menu-button {visibility: visible !important; opacity: 1 !important; display: flex !important}
#head button {font: inherit; color: var(--link-text-color); text-decoration: underline; cursor: pointer}
#head button {background: none; border: 0; min-height: 24px}
p.bad, #head .bad {color: #b42318; font-weight: 600}
.dark p.bad, .dark #head .bad {color: #ff9a8d}
.who {font-size: 13px; margin: 6px 2px}
.number {font-size: 34px; font-weight: 650; margin: 8px 2px}
.confirm {border: 2px solid var(--border-color-accent); border-radius: 8px; padding: 10px}
.quiet {padding: 14px; border: 1px dashed var(--border-color-primary); border-radius: 8px; margin: 4px 0}
.answers {display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr))}
.answer {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px; min-width: 0}
.answer h2 {font-size: 15px; font-weight: 650; margin: 0 0 8px; overflow-wrap: anywhere}
.bars {list-style: none; margin: 0; padding: 0}
.bars li {position: relative; display: flex; justify-content: space-between; gap: 8px; padding: 3px 0 9px; margin: 0}
.bars span {overflow-wrap: anywhere}
.bars i {position: absolute; left: 0; bottom: 3px; height: 4px; border-radius: 2px; background: #0d9488; min-width: 1px}
.words small {opacity: .85; border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0 4px}
.dark {--color-accent: #2dd4bf !important}
.picture {display: block; overflow-x: auto}
@media (max-width: 640px) {img.drawn {min-width: 680px}}
img.drawn {max-width: 100%; background: #fff; border-radius: 8px; padding: 6px; margin: 8px 0}
.dark img.drawn {filter: invert(.92) hue-rotate(180deg)}
.card {max-width: 860px; overflow-wrap: anywhere}
.card pre, .card code {white-space: pre-wrap; overflow-wrap: anywhere}
.card .wide {overflow-x: auto}
.card table {border: 0 !important}
.card th, .card td {overflow-wrap: break-word}
@media (max-width: 640px) {.card table {font-size: 13px} .card th, .card td {padding: 4px 6px !important}}
"""
