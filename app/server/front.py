"""Assembles the front's ASGI application: API routes, the page's own routes, the page, and access control.

Owns nothing that outlives the application; live.py starts and stops what it uses, and the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import fastapi
import gradio as gr
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.context import ApiContext
from app.api.routes import OPENAPI_URL, include_all, new_application
from app.api.schema import plain_controls
from app.api.told import told
from app.guard.rules import host_pair
from app.page.page import DARK_SCRIPT, HEAD, Page, page_style, page_theme
from app.page.prompts import Prompts
from app.page.widgets import inapplicable_elements, stream_controls
from pipelines.core.prompts import MAX_PROMPT_CHARACTERS

from .gate import FrontGate
from .root_path import RootPath
from .warm_up import warm_up

if TYPE_CHECKING:
    from app.worker.pool import Workers

_CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src {connect} data: blob:; "
    "frame-ancestors 'self'; form-action 'self'"
)


def make_application(
    context: ApiContext, prompts: Prompts, *, guard: Callable[[ASGIApp], ASGIApp] | None = None
) -> ASGIApp:
    """Everything on one port: /v1, health, metrics, the page at /. guard: wraps all of it, Gradio's routes included.

    Below `context.root_path` too, if there is one.
    """
    application = new_application()
    workers = context.table.workers
    include_all(application, context, page_routes(workers, prompts, context.model))
    mounted: ASGIApp = gr.mount_gradio_app(
        application,
        Page(workers, prompts, context.outputs).build(),
        path="/",
        root_path=context.root_path or None,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size="1mb",
        theme=page_theme(),
        css=page_style(),
        head=HEAD,
        js=DARK_SCRIPT,
    )
    warm_up(mounted, ("/", OPENAPI_URL))
    gated = FrontGate(mounted)
    guarded = guard(gated) if guard is not None else gated
    return PolicyHeaders(RootPath(guarded, context.root_path) if context.root_path else guarded)


class PromptText(BaseModel):
    """The text in the page's prompt box."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS)


def page_routes(workers: Workers, prompts: Prompts, model: str = "") -> fastapi.APIRouter:
    """Routes for the page only: the worker's status text, initial control values, and notices about a prompt.

    model: the name that the workers were started with.
    """
    routes = fastapi.APIRouter(prefix="/page", include_in_schema=False)

    @routes.get("/status")
    async def status() -> dict[str, object]:
        """phase: for the stage's colours. text: shown to the user, with everything that "auto" chose and
        why. execution: how the networks run, and what is being made of them; "": as they were loaded."""
        now = workers.status
        restarted = (f"restarted {now.restarts}×",) if now.restarts else ()
        texts = filter(None, (now.text, now.silence, *now.notices, *restarted))
        return {
            "phase": now.phase.value,
            "text": told(" · ".join(texts), (model,)),
            "execution": told(str(now.preparation)),
        }

    @routes.get("/controls")
    async def controls() -> dict[str, object]:
        """controls: of a new stream, without the prompt; null until the worker is ready. engine: "image" or "video".
        hidden: page elements that do not apply to it. takes_actions: whether camera and subject can be moved.
        momentary: one-shot controls, with their idle values."""
        ready = workers.status.ready
        if ready is None:
            return {"controls": None}
        values = {name: value for name, value in plain_controls(ready.controls).items() if name != "prompt"}
        info = ready.info
        return {
            "controls": values,
            "engine": info.engine,
            "hidden": inapplicable_elements(info.engine),
            "takes_actions": info.takes_actions,
            "momentary": {spec.name: spec.default for spec in stream_controls() if spec.momentary},
        }

    @routes.post("/notice")
    async def notice(text: PromptText) -> dict[str, str]:
        """html: a notice about the prompt, or empty."""
        return {"html": prompts.notice(text.prompt)}

    return routes


class PolicyHeaders:
    """Adds two headers to every response: a Content-Security-Policy under which a page reaches this server only, and a
    Referrer-Policy. Plain ASGI, so that streaming responses keep streaming."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", content_policy(scope).encode())
                message["headers"] = [*message["headers"], policy, (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def content_policy(scope: Scope) -> str:
    """The policy for one request. WebSockets are named by the request's host: not every browser's 'self' has them."""
    hosts = [value.decode("latin-1") for name, value in scope.get("headers", []) if name.lower() == b"host"]
    plain = len(hosts) == 1 and "[" not in hosts[0] and host_pair(hosts[0], 0) is not None
    sockets = f" ws://{hosts[0]} wss://{hosts[0]}" if plain else ""  # a policy has no form for IPv6
    return _CONTENT_POLICY.format(connect=f"'self'{sockets}")
