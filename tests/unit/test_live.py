"""`zoetrope live` before it serves: addresses, option values, the headers of every response."""

from __future__ import annotations

import argparse
import asyncio
import socket
from typing import ClassVar

import pytest

from app.cli import live
from app.server.front import PolicyHeaders, content_policy
from app.worker.handle import WorkerPhase, WorkerStatus
from pipelines.core.errors import InputError


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    live.add_parser(parser.add_subparsers())
    return parser.parse_args(["live", *arguments])


def test_a_taken_port_names_the_option() -> None:
    with live.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"Port {port} of 127.0.0.1 cannot be used .* Choose another with --port"):
            live.listen("127.0.0.1", port)


def test_port_0_finds_a_free_one() -> None:
    with live.listen("127.0.0.1", 0) as listener:
        assert isinstance(listener, socket.socket)
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "-1"), "--threads cannot be -1"),
        (("--max-sessions", "0"), "--max-sessions cannot be 0"),
        (("--port", "70000"), "--port cannot be 70000"),
        (("--ssl-cert", "x.pem"), "--ssl-key is missing"),
        (("--token", "short"), "token"),
    ],
)
def test_numbers_that_make_no_sense(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        live.run(options(*arguments))


def test_defaults_are_safe() -> None:
    chosen = options()
    assert (chosen.host, chosen.port, chosen.model, chosen.token) == ("127.0.0.1", 7860, "mini-image", None)


def test_a_browser_is_opened_as_asked_or_where_there_is_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not live.wants_browser(None)
    assert live.wants_browser(True)
    monkeypatch.setenv("DISPLAY", ":0")
    assert live.wants_browser(None)
    assert not live.wants_browser(False)


def test_what_the_worker_says_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Server:
        started, should_exit = True, False

    class Client:
        statuses: ClassVar = [
            WorkerStatus(phase=WorkerPhase.LOADING, text="loading m…"),
            WorkerStatus(phase=WorkerPhase.READY, text="ready: m", notices=("It needs an LCM-LoRA.",)),
            WorkerStatus(phase=WorkerPhase.READY, text="ready: m", notices=("It needs an LCM-LoRA.",)),
            WorkerStatus(phase=WorkerPhase.FAILED, text="It is gone."),
        ]

        @property
        def status(self) -> WorkerStatus:
            return self.statuses.pop(0)

    live._announce(Client(), Server(), ["http://x"], browser=False)  # type: ignore[arg-type]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Zoetrope is live: http://x"
    assert said[1:] == [
        f"worker: {text}" for text in ("loading m…", "It needs an LCM-LoRA.", "ready: m", "It is gone.")
    ]


def test_every_answer_carries_the_policy() -> None:
    sent: list[dict[str, object]] = []

    async def application(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})  # type: ignore[operator]

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asyncio.run(PolicyHeaders(application)({"type": "http"}, None, send))  # type: ignore[arg-type]
    headers = dict(sent[0]["headers"])  # type: ignore[call-overload]
    assert headers[b"a"] == b"b"
    assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("host", "connect"),
    [
        ("studio.example:7860", "'self' ws://studio.example:7860 wss://studio.example:7860 data: blob:"),
        ("localhost", "'self' ws://localhost wss://localhost data: blob:"),
        ("[::1]:7860", "'self' data: blob:"),
        ("a.example; script-src *", "'self' data: blob:"),
        ("a.example *", "'self' data: blob:"),
        ("", "'self' data: blob:"),
    ],
)
def test_the_page_may_connect_to_its_own_server_only(host: str, connect: str) -> None:
    policy = content_policy({"type": "http", "headers": [(b"Host", host.encode())]})
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["connect-src"] == connect
    assert rules["default-src"] == "'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
