"""The complete API for tests: uvicorn in a thread over a given worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastapi
import httpx
from starlette.types import ASGIApp

from app.api.context import ApiContext, ApiLimits
from app.api.routes import include_all, new_application
from app.guard.middleware import Guard
from app.guard.rules import GuardOptions
from app.outputs.kinds import OUTPUT_KINDS
from app.outputs.output_kind import OutputKind
from app.outputs.push_hosts import PushHosts
from app.server.front_server import FrontServer
from app.server.root_path import RootPath
from app.session.table import SessionLimits, SessionTable
from app.worker.handle import WorkerHandle
from tests.fakes.stream_server import WAIT_S, wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """A running server. http: a client connected to it."""

    url: str
    app: fastapi.FastAPI
    context: ApiContext
    http: httpx.Client

    @property
    def table(self) -> SessionTable:
        return self.context.table


@contextmanager
def api_server(
    worker: WorkerHandle,
    data: Path,
    limits: ApiLimits | None = None,
    push_hosts: PushHosts | None = None,
    guard: GuardOptions | None = None,
    outputs: tuple[OutputKind[Any], ...] = OUTPUT_KINDS,
    root_path: str = "",
) -> Iterator[ApiServer]:
    """Serve all routes over `worker`, and clean up at the end.

    guard: options of a guard in front of the application; its port is set, and this address added to its hosts.
    root_path: as of `--root-path`.
    """
    table = SessionTable(worker, SessionLimits(per_minute=10_000))
    codecs = ThreadPoolExecutor(2, thread_name_prefix="codec")
    context = ApiContext(
        table=table,
        codecs=codecs,
        data=data,
        model="identity",
        limits=limits or ApiLimits(),
        push_hosts=push_hosts or PushHosts(),
        outputs=outputs,
        root_path=root_path,
    )
    app = new_application()
    include_all(app, context)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    rules = guard and replace(guard, port=port, hosts=guard.hosts | {f"127.0.0.1:{port}"})
    guarded: ASGIApp = Guard(app, rules) if rules else app
    served = RootPath(guarded, root_path) if root_path else guarded
    front = FrontServer(served, listener, log_level="warning", timeout_graceful_shutdown=1)
    server = front.server
    thread = threading.Thread(target=front.run, name="uvicorn")
    thread.start()
    wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=WAIT_S) as http:
            yield ApiServer(url=url, app=app, context=context, http=http)
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        table.stop()
        codecs.shutdown()
