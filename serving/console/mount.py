"""Puts the console into the app. This needs the extra `console`."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount

from serving.app import behind_middleware
from serving.auth.authenticator import CONSOLE
from serving.console.context import ConsoleContext
from serving.console.firewall import Firewall
from serving.console.layout import build_page
from serving.console.package_views import Packages
from serving.console.style import STYLE, console_theme
from serving.request.service import Service

SESSIONS = 200  # open pages that something is remembered of


def add_console(app: FastAPI, service: Service) -> None:
    """Mount the page behind its firewall. app: the endpoint's own, whose middleware asks for the key."""
    engine = service.engine
    page = build_page(
        ConsoleContext(
            behind_middleware(app),
            service.access,
            Packages(engine),
            service.settings.backbone,
            str(engine.backbone.device),
        )
    )
    page.state_session_capacity = SESSIONS
    shell = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        CONSOLE,
        theme=console_theme(),
        css=STYLE,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        allowed_paths=[],
        show_error=True,
    )
    inner = shell.routes[-1]
    assert isinstance(inner, Mount), "Gradio's app is mounted"

    async def start() -> None:
        """What a server's lifespan would do; a mounted app has none."""
        page.run_startup_events()
        await page.run_extra_startup_events()

    app.mount(CONSOLE, Firewall(inner.app, service.access, start))
