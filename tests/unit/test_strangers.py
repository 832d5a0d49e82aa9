"""Work for clients who have shown nothing yet: refused before it is done, and without keeping out those who have."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import httpx
import pytest
from websockets.sync.client import connect

from app.api.stream.connection import StreamLimits
from app.api.stream.socket import router
from app.api.uploads import Multipart
from app.guard.rules import GuardOptions
from app.session.table import SessionLimits
from app.worker.handle import WorkerHandle
from pipelines.core.errors import InputError, TooLargeError
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.stream_server import Peer, peer, stream_server, worker_client

TOKEN = "correct-horse-battery"  # of tests
GUARD = GuardOptions(port=1, hosts=frozenset(), token=TOKEN, body_s=2.0)
MADE_UP = {"Authorization": "Bearer made-up", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    with worker_client() as made:
        yield made


@pytest.fixture(scope="module", params=[TOKEN, None], ids=["token", "no token"])
def server(
    worker: WorkerHandle, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ApiServer]:
    with api_server(worker, tmp_path_factory.mktemp("data"), guard=replace(GUARD, token=request.param)) as made:
        yield made


# ---- the token before the body ----


@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", ""), ("POST", "/outputs"), ("POST", "/take"), ("POST", "/whip"), ("POST", "/webrtc")]
)
@pytest.mark.parametrize("size", [20, 60_000, 8 << 20])
def test_a_wrong_session_token_is_told_whatever_the_body_is(
    server: ApiServer, method: str, path: str, size: int
) -> None:
    headers = {**MADE_UP, **({"Content-Type": "application/sdp"} if path in ("/whip", "/webrtc") else {})}
    answer = server.http.request(method, f"/v1/sessions/aaaaaaaaaaaa{path}", content=b"{" * size, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorised"), answer.text


def test_a_wrong_session_token_is_told_before_the_body_has_come(server: ApiServer) -> None:
    host = server.url.removeprefix("http://")
    for length in (b"Content-Length: 1000", b"Content-Length: 4000000", b"Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), 10) as line:
            line.sendall(
                f"PATCH /v1/sessions/aaaaaaaaaaaa HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer x\r\n".encode()
                + b"Content-Type: application/json\r\n"
                + length
                + b"\r\n\r\n"
            )
            told = b""
            while piece := line.recv(4096):  # until the server closes: it waits for no body
                told += piece
        assert told.startswith(b"HTTP/1.1 401"), told
        assert b"connection: close" in told.lower()


def test_json_is_small_and_one_refusal_costs_as_much_as_another(server: ApiServer) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    opened = server.http.post("/v1/sessions", headers=bearer).json()
    own = {"Authorization": f"Bearer {opened['token']}"}
    path = f"/v1/sessions/{opened['id']}"
    for body in ({f"k{i}": 0 for i in range(6000)}, {"controls": {f"k{i}": 0 for i in range(6000)}}):
        answer = server.http.patch(path, json=body, headers=own)
        assert answer.status_code == 422, answer.text
        assert "6000 fields" in answer.json()["error"]["message"]
    one = server.http.patch(path, json={"k": 0}, headers=own).json()["error"]["message"]
    assert one == "k: Extra inputs are not permitted."
    for route in (path, "/v1/sessions", "/page/notice"):
        answer = server.http.request(
            "PATCH" if route == path else "POST",
            route,
            json={"k": "x" * 270_000},
            headers=own if route == path else bearer,
        )
        assert answer.status_code == 413, (route, answer.text)
        assert answer.json()["error"]["message"] == f"The body has more than {GUARD.text_bytes} bytes."
    assert server.http.delete(path, headers=own).status_code == 204


# ---- places before hello ----


def test_silent_sockets_keep_out_no_owner_of_the_same_address(worker: WorkerHandle, tmp_path: Path) -> None:
    limits = StreamLimits(waiting=8, waiting_per_address=3, connections=2)
    with (
        stream_server(worker, tmp_path, lambda context: router(context, limits)) as server,
        ExitStack() as stack,
    ):
        session = server.table.open(prompt_only=False)
        silent = [
            stack.enter_context(connect(server.url("abcdefabcdef"), compression=None, close_timeout=1))
            for _ in range(9)
        ]
        with peer(server, session) as client:
            client.text("ready")
            assert Peer(silent[0]).closed()[0] == 1013  # gave way
            more = stack.enter_context(connect(server.url("x"), compression=None, close_timeout=1))
            with peer(server, session) as second:
                second.text("ready")
                third = stack.enter_context(peer(server, session))
                assert third.closed()[0] == 1013  # of those who have said hello there are two
            more.send("nonsense")
            assert Peer(more).closed()[0] == 1008
        session.close()


def test_limits_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="waiting_per_address is 9; give at most waiting, which is 8"):
        StreamLimits(waiting=8, waiting_per_address=9)


# ---- rates ----


def test_no_address_uses_up_the_rate_of_all(worker: WorkerHandle, tmp_path: Path) -> None:
    assert SessionLimits().per_minute >= 10 * GuardOptions(port=1, hosts=frozenset()).sessions_per_minute
    with api_server(worker, tmp_path, guard=replace(GUARD, token=None, sessions_per_minute=3)) as server:

        def open_from(address: str) -> int:
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address), base_url=server.url) as http:
                answer = http.post("/v1/sessions", timeout=20)
                if answer.status_code == 201:
                    opened = answer.json()
                    own = {"Authorization": f"Bearer {opened['token']}"}
                    http.delete(f"/v1/sessions/{opened['id']}", headers=own)
                return answer.status_code

        assert [open_from("127.0.0.1") for _ in range(5)] == [201, 201, 201, 429, 429]
        assert open_from("127.0.0.9") == 201


# ---- forms ----


def form(*names: str, content: bytes = b"a") -> bytes:
    part = b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    return b"".join(part % (name.encode(), content) for name in names) + b"--B--\r\n"


def test_a_form_is_refused_at_its_first_unknown_field(server: ApiServer) -> None:
    names = [f"{i:x}" for i in range(20_000)]
    headers = {"Content-Type": "multipart/form-data; boundary=B", "Authorization": f"Bearer {TOKEN}"}
    for route, content in (("/v1/generate", b"a"), ("/v1/jobs", b"")):
        began_s = time.monotonic()
        answer = server.http.post(route, content=form("prompt", *names, content=content), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_input")
        assert answer.json()["error"]["message"] == "Unknown field '0'."
        assert time.monotonic() - began_s < 2
    parser = Multipart(b"B", "video", 100)
    with pytest.raises(InputError, match="Unknown field 'picture'") as refusal:
        parser.feed(form("picture"))
    assert "options, prompt. The file's field is: video" in refusal.value.remedy


def test_the_texts_of_a_form_are_bounded_together() -> None:
    with pytest.raises(TooLargeError, match="too long"):
        Multipart(b"B", "video", 99).feed(form("prompt", "options", content=b"x" * 50))
    parser = Multipart(b"B", "video", 100)
    parser.feed(form("prompt", "options", content=b"x" * 50))
    assert parser.fields() == {"prompt": "x" * 50, "options": "x" * 50}
    with pytest.raises(InputError, match="malformed"):
        Multipart(b"B", "video", 100).feed(b'--B\r\n%s: form-data; name="prompt"\r\n\r\na' % (b"x" * 10_000))


@pytest.mark.parametrize("filler", [b"\r\n--", b"\r", b"-", b"--B\r"])
def test_a_form_of_near_boundaries_lets_others_in_between(server: ApiServer, filler: bytes) -> None:
    """The parser takes such bytes one by one: others are served meanwhile."""
    body = form("prompt")[:-7] + b'--B\r\nContent-Disposition: form-data; name="picture"\r\n\r\n' + filler * (1 << 18)
    headers = {"Content-Type": "multipart/form-data; boundary=B", "Authorization": f"Bearer {TOKEN}"}
    both = Barrier(2)

    def send() -> int:
        both.wait()
        return httpx.post(f"{server.url}/v1/generate", content=body, headers=headers, timeout=20).status_code

    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(send)
        both.wait()
        waits = []
        while not sent.done():
            began_s = time.monotonic()
            assert server.http.get("/healthz", headers=headers).status_code == 200
            waits.append(time.monotonic() - began_s)
        assert sent.result() == 400
    assert max(waits) < 0.25, json.dumps(waits)  # with room for a busy machine; parsed at once it takes longer
