"""`zoetrope live`: the front process. Serves page and API, owns the worker pool and the session table.

Never touches a GPU and never imports torch. Stops cleanly on Ctrl-C, SIGTERM and SIGHUP: takes and recordings finished,
sessions closed, workers joined, shared memory unlinked.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.guard.rules import is_loopback
from app.page.prompts import Prompts
from app.server.ends import ends_like_ctrl_c
from app.worker.threads import begin_start, end_start, giving_memory_back, shorten_switch_interval
from pipelines.core.errors import InputError

from .guard_options import add_guard_options, guard_options, links
from .live_options import add_output_options, api_limits, controller_options, push_hosts, webrtc_options
from .options import add_engine_options, engine_options

if TYPE_CHECKING:
    import uvicorn

    from app.api.context import ApiContext
    from app.guard.rules import GuardOptions
    from app.server.tls import TlsFiles
    from app.worker.pool import Workers
    from app.worker.process import WorkerOptions
    from pipelines.files.loader_options import LoaderOptions

_PAGE_CLOSE_S = 2
_CODEC_THREADS = 2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its options."""
    parser = subparsers.add_parser("live", help="serve a page: camera, video or prompt in, a generated stream out")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on, 0 for any free one (default 7860)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per worker (default: all cores)")
    parser.add_argument("--max-sessions", type=int, default=4, help="concurrent sessions, all devices (default 4)")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder of takes, recordings and jobs")
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="open the page in a browser (default: if there is a display)",
    )
    add_guard_options(parser)
    add_output_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or another ordinary end. Raises InputError for an address that cannot be used, and the error
    of a failed worker."""
    check_numbers(options)
    listener = listen(options.host, options.port)
    begin_start()
    try:
        with ends_like_ctrl_c():
            return _serve(options, listener)
    finally:
        gc.enable()
        listener.close()


def check_numbers(options: argparse.Namespace) -> None:
    """Raise InputError for numbers out of range."""
    if options.threads < 0:
        raise InputError(f"--threads cannot be {options.threads}.", "Give 0 (all cores) or more.")
    if options.max_sessions < 1:
        raise InputError(f"--max-sessions cannot be {options.max_sessions}.", "Give 1 or more.")
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port cannot be {options.port}.", "Give 0 (any free one) to 65535.")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError that names --port or --host."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"--host {host} is not an address of this machine ({error}).", "Use 127.0.0.1.") from error
    listener = socket.socket(family, kind, protocol)
    if os.name != "nt":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InputError(
            f"Port {port} of {host} cannot be used ({error.strerror}).",
            "Is Zoetrope already running? Choose another with --port, or 0 for any free one.",
        ) from error
    return listener


def _serve(options: argparse.Namespace, listener: socket.socket) -> int:
    import cv2

    from app.api.context import ApiContext
    from app.controllers.opening import controllers
    from app.server.root_path import checked_root_path
    from app.server.tls import tls_files
    from app.session.table import SessionTable
    from app.worker.pool import WorkerPool

    shorten_switch_interval()
    cv2.setNumThreads(1)  # the cores belong to the worker
    guard = guard_options(options, options.host, listener.getsockname()[1])
    private = is_loopback(options.host) and guard.token is None and not options.allow_host and not options.allow_origin
    hosts, webrtc = push_hosts(options, private=private), webrtc_options(options, private=private)
    limits = api_limits(options)
    controls, root_path = controller_options(options), checked_root_path(options.root_path)
    tls = tls_files(options, options.data, options.host)
    engine, model = engine_options(options), str(options.model)
    workers = WorkerPool(worker_options(model, engine, options.threads), max_sessions=options.max_sessions)
    workers.start()  # loads while the page is being built
    table = SessionTable(workers)
    codecs = ThreadPoolExecutor(_CODEC_THREADS, thread_name_prefix="codec")
    try:
        context = ApiContext(
            table=table,
            codecs=codecs,
            codec_threads=_CODEC_THREADS,
            data=options.data,
            model=model,
            limits=limits,
            push_hosts=hosts,
            webrtc=webrtc,
            root_path=root_path,
        )
        with controllers(controls, table) as opened:
            for controller in opened:
                sys.stdout.write(f"{controller.read().text}\n")
            _serve_until_stopped(options, listener, context, guard, tls)
    finally:
        table.stop()
        codecs.shutdown(cancel_futures=True)
        error = workers.status.error
        workers.stop()
    if error is not None:
        raise error
    return 0


def worker_options(model: str, engine: LoaderOptions, threads: int) -> list[WorkerOptions]:
    """One worker per device in the comma-separated list. threads: per worker; 0 shares the cores among several.

    Raises InputError for an empty entry in the list.
    """
    from app.worker.process import WorkerOptions

    devices = [part.strip() for part in engine.device.split(",")]
    if not all(devices):
        raise InputError(f"--device cannot be {engine.device!r}.", "Separate devices by single commas: cuda:0,cuda:1.")
    if len(devices) > 1 and not threads:
        threads = max(1, (os.cpu_count() or 1) // len(devices))
    return [WorkerOptions(model=model, engine=replace(engine, device=device), threads=threads) for device in devices]


def _serve_until_stopped(
    options: argparse.Namespace,
    listener: socket.socket,
    context: ApiContext,
    guard: GuardOptions,
    tls: TlsFiles | None,
) -> None:
    from app.guard.middleware import Guard
    from app.page.gradio_imports import prepare_gradio

    prepare_gradio()
    from app.server.front import make_application
    from app.server.front_server import FrontServer
    from app.server.log_secrets import hidden_tokens

    logging.getLogger("httpx").setLevel(logging.WARNING)  # INFO logs addresses: a WHIP push's holds a key
    application = make_application(context, prompts_of(context.model), guard=partial(Guard, options=guard))
    end_start()
    front = FrontServer(
        application,
        listener,
        message_bytes=context.limits.message_bytes,
        log_level="warning",
        lifespan="on",  # "auto" would silently ignore a failed start-up
        timeout_graceful_shutdown=_PAGE_CLOSE_S,
        cert=tls.cert if tls else None,
        key=tls.key if tls else None,
    )
    shown = guard if guard.token_is_new else replace(guard, token=None)  # print only generated tokens
    addresses = links(shown, options.host, tls=tls is not None, root_path=context.root_path)
    if tls is not None and tls.self_signed:
        sys.stdout.write(f"Self-signed certificate, SHA-256 {tls.fingerprint}: the browser asks once.\n")
    watcher = threading.Thread(
        target=_announce,
        args=(context.table.workers, front.server, addresses, wants_browser(options.open)),
        name="announce",
        daemon=True,
    )
    watcher.start()
    try:
        with hidden_tokens(guard.token or ""), giving_memory_back():
            front.run()
    except KeyboardInterrupt:
        sys.stderr.write("zoetrope: stopping…\n")


def data_folder() -> Path:
    """The default folder of this user's files: $XDG_DATA_HOME/zoetrope or ~/.local/share/zoetrope."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "zoetrope"


def prompts_of(model: str) -> Prompts:
    """Examples and vocabulary of a model that has a word list (a bundled one); general examples for others."""
    from pipelines.files.vocabulary import world_file

    world = world_file(model)
    return Prompts.of_world(world) if world is not None else Prompts()


def wants_browser(option: bool | None) -> bool:
    """Whether to open a browser: by the option, else if there is a display."""
    if option is not None:
        return option
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _announce(workers: Workers, server: uvicorn.Server, urls: Sequence[str], browser: bool) -> None:
    """Print the page's URL once the server is up and the worker's status; stop the server if the worker failed."""
    from app.worker.handle import WorkerPhase

    while not server.started and not server.should_exit:
        threading.Event().wait(0.05)
    for url in urls:
        sys.stdout.write(f"Zoetrope is live: {url}\n")
    sys.stdout.flush()
    if browser:
        webbrowser.open(urls[0])
    printed: set[str] = set()
    text = ""
    while not server.should_exit:
        status = workers.status
        news = [notice for notice in status.notices if notice not in printed]
        if status.text != text:
            news.append(text := status.text)
        if status.silence and status.silence not in printed:
            news.append(status.silence)
        printed.update(status.notices)
        printed.add(status.silence)
        for line in news:
            sys.stdout.write(f"worker: {line}\n")
        sys.stdout.flush()
        if status.phase is WorkerPhase.FAILED:
            server.should_exit = True
        threading.Event().wait(0.2)
