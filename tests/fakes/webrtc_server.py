"""The WebRTC and session routes on a real server in a thread, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fastapi
import uvicorn

from app.api import sessions
from app.api.context import ApiContext, ApiLimits
from app.api.errors import install_errors
from app.api.webrtc import routes as whip
from app.session.session import Session
from app.session.table import SessionLimits, SessionTable
from app.webrtc.options import WebRtcOptions
from app.worker.handle import WorkerHandle
from app.worker.proxy import SessionState


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: its session table and URL."""

    table: SessionTable
    url: str

    def open(self) -> Session:
        session = self.table.open(prompt_only=False)
        deadline_s = time.monotonic() + 20
        while session.proxy.state is not SessionState.LIVE:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        return session


def serve(
    client: WorkerHandle, folder: Path, options: WebRtcOptions | None, limits: ApiLimits | None = None
) -> Iterator[Server]:
    table = SessionTable(client, SessionLimits(grace_s=30, per_minute=1000))
    with ThreadPoolExecutor(2) as codecs:
        context = ApiContext(table=table, codecs=codecs, data=folder, model="identity", limits=limits or ApiLimits())
        app = fastapi.FastAPI()
        install_errors(app, context)
        app.include_router(sessions.router(context))
        app.include_router(whip.router(context, options))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Server(table=table, url=f"http://127.0.0.1:{port}/v1")
        server.should_exit = True
        thread.join()
    table.stop()
