"""The WebSocket endpoint over a real server and worker: frames both ways, changes, limits, and every refusal."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from app.api.pictures import pack, unpack
from app.api.stream.connection import StreamLimits
from app.api.stream.socket import router
from app.api.stream.wire import Header, PictureFormat, pack_header
from app.session.session import Session
from app.worker.handle import WorkerHandle
from tests.fakes.stream_server import (
    HEIGHT_PX,
    WIDTH_PX,
    Peer,
    StreamServer,
    noise,
    peer,
    stream_server,
    wait_until,
    worker_client,
)

LIMITS = StreamLimits(hello_s=0.4, ack_s=1.0, per_session=2)


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    with worker_client() as client:
        yield client


@pytest.fixture(scope="module")
def server(client: WorkerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamServer]:
    with stream_server(client, tmp_path_factory.mktemp("data"), lambda context: router(context, LIMITS)) as server:
        yield server


@pytest.fixture
def session(server: StreamServer) -> Iterator[Session]:
    session = server.table.open(prompt_only=False)
    yield session
    wait_until(lambda: session.over or session.unused_s(time.monotonic()) > 0 or not session.read().connections)
    session.close()


def close_code(server: StreamServer, session_id: str, *messages: str | bytes) -> tuple[int, str]:
    """Send messages. Returns the code with which the server closes."""
    with connect(server.url(session_id), compression=None, close_timeout=2) as socket:
        for message in messages:
            socket.send(message)
        return Peer(socket).closed()


def hello(session: Session, **more: object) -> str:
    return json.dumps({"type": "hello", "version": 1, "token": session.token, **more})


# ---- frames ----


def test_raw_pictures_come_back_exactly_with_the_clients_own_numbers(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        ready = client.text("ready")
        assert (ready["version"], ready["session"]) == (1, session.id)
        assert (ready["info"]["width"], ready["info"]["height"], ready["info"]["model"]) == (32, 24, "identity")
        assert ready["controls"]["prompt"] == []
        for turn, seq in enumerate((7, 4_000_000_000, 3)):
            client.picture(noise(seq), seq, captured_ms=1234.5 + seq)
            header, data = client.frame()
            assert header.format is PictureFormat.RGB
            assert (header.seq, header.source_seq, header.captured_ms) == (turn + 1, seq, 1234.5 + seq)
            assert (header.width, header.height) == (WIDTH_PX, HEIGHT_PX)
            assert 0 < header.server_us < 5_000_000
            assert data == noise(seq).tobytes()


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_coded_pictures_come_back(server: StreamServer, session: Session, form: str) -> None:
    rows, columns = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
    image = np.stack([rows * 10, columns * 7, 255 - rows * 5], axis=-1).astype(np.uint8)
    kind = PictureFormat[form.upper()]
    with peer(server, session, format=form, quality=95) as client:
        client.text("ready")
        header = Header(format=kind, seq=5, width=WIDTH_PX, height=HEIGHT_PX)
        client.socket.send(pack_header(header) + pack(image, kind, 95))
        answer, data = client.frame()
        assert (answer.format, answer.source_seq) == (kind, 5)
        back = unpack(data, kind, width=WIDTH_PX, height=HEIGHT_PX, max_px=1000)
        assert np.abs(back.astype(int) - image).mean() < 12


def test_a_larger_picture_is_fitted_to_the_stream(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.picture(np.full((96, 96, 3), 77, np.uint8), 1)
        header, data = client.frame()
        assert (header.width, header.height, set(data)) == (WIDTH_PX, HEIGHT_PX, {77})


def test_prompt_only_frames_have_no_source(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.say(type="source", id=4, prompt_only=True)
        assert client.text("applied")["id"] == 4
        header, _ = client.frame()
        assert (header.source_seq, header.captured_ms, header.server_us) == (None, 0.0, 0)


def test_a_picture_is_taken_before_its_frame_is_there(server: StreamServer, session: Session) -> None:
    """A client that waits for its frames would leave a ring of several steps half empty."""
    with peer(server, session) as client:
        client.text("ready")
        for seq in (4_000_000_000, 9):
            client.picture(noise(seq), seq)
            assert client.text("taken")["seq"] == seq
            assert client.frame()[0].source_seq == seq


def test_under_a_flood_the_newest_wins_and_the_count_closes(server: StreamServer, session: Session) -> None:
    count = 300
    with peer(server, session, send_stats_ms=100) as client:
        client.text("ready")
        for seq in range(count):
            client.picture(noise(seq), seq)
        answered: list[int] = []
        while not answered or answered[-1] != count - 1:
            header, data = client.frame()
            assert header.source_seq is not None
            assert data == noise(header.source_seq).tobytes()
            answered.append(header.source_seq)
        assert answered == sorted(answered)
        assert len(answered) < count
        wait_until(lambda: session.read().accounting.in_flight == 0)
        while True:
            counts = client.text("stats")["accounting"]
            assert counts["in"] == counts["out"] + counts["dropped"] + counts["skipped"] + counts["in_flight"]
            if counts["in"] == count and not counts["in_flight"]:
                break
        assert counts["out"] >= len(answered)
        assert counts["dropped"] == count - counts["out"]


def test_at_most_two_frames_are_ahead_and_who_acknowledges_gets_the_newest(
    server: StreamServer, session: Session
) -> None:
    with peer(server, session) as client:
        client.text("ready")
        for seq in range(6):
            client.picture(noise(seq), seq)
            wait_until(lambda done=seq + 1: session.proxy.count == done)  # type: ignore[misc]
        first, _ = client.frame(ack=False)
        second, _ = client.frame(ack=False)
        assert (first.source_seq, second.source_seq) == (0, 1)
        with pytest.raises(TimeoutError):
            client.frame(0.3)
        client.say(type="ack", seq=first.seq)
        third, _ = client.frame(ack=False)
        assert third.source_seq == 5
        client.say(type="ack", seq=12345)  # never sent: ignored
        client.say(type="ack", seq=third.seq)
        while (stats := client.text("stats"))["missed"] < 3:
            continue
        assert stats["missed"] == 3


def test_who_never_acknowledges_is_let_go(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.say(type="source", id=1, prompt_only=True)
        assert client.closed() == (4408, "frames were not acknowledged for 1 s")


def test_the_figures_name_every_stage_of_the_door(server: StreamServer, session: Session) -> None:
    with peer(server, session, send_stats_ms=100) as client:
        client.text("ready")
        for seq in range(4):
            client.picture(noise(seq), seq)
            client.frame()
        client.text("stats")
        stats = client.text("stats")
        assert {"unpack", "pack", "send", "total"} <= set(stats["stages"])
        total, packing = stats["stages"]["total"], stats["stages"]["pack"]
        assert total["p95_ms"] >= total["p50_ms"] > packing["p50_ms"] > 0
        assert stats["latency_ms"] > 0


# ---- changes ----


def test_a_change_is_applied_and_a_refused_one_keeps_the_connection(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.say(type="control", id=1, changes={"strength": 0.25, "prompt": "a cat:2 | a robot"})
        assert client.text("applied")["id"] == 1
        assert session.proxy.control.strength == 0.25
        for number, changes, words in (
            (2, {"strength": 7}, "strength cannot be 7"),
            (3, {"nonsense": 1}, "no control named 'nonsense'"),
            (4, {"width": 64}, "cannot be changed while the engine runs"),
            (5, {"strength": 0.5, "seed": "x"}, "whole number"),
        ):
            client.say(type="control", id=number, changes=changes)
            error = client.text("error")
            assert (error["id"], error["code"]) == (number, "bad_control")
            assert words in error["message"]
        assert session.proxy.control.strength == 0.25
        client.say(type="ping", id=9, at_ms=17.25)
        pong = client.text("pong")
        assert (pong["id"], pong["at_ms"]) == (9, 17.25)
        client.picture(noise(1), 1)
        assert client.frame()[1] == noise(1).tobytes()


def test_close_ends_the_session_at_once(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.say(type="close")
        assert client.closed() == (1000, "The session was closed.")
        assert client.seen[-1]["type"] == "ended"
    assert session.over
    assert close_code(server, session.id, hello(session))[0] == 4404


def test_a_lost_connection_comes_back_to_the_same_session(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.say(type="control", id=1, changes={"strength": 0.75})
        client.text("applied")
    with peer(server, session) as client:
        assert client.text("ready")["controls"]["strength"] == 0.75
        client.picture(noise(2), 2)
        assert client.frame()[1] == noise(2).tobytes()


# ---- refusals ----


def test_no_hello_in_time(server: StreamServer, session: Session) -> None:
    assert close_code(server, session.id) == (4408, "no hello within 0.4 s")


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ('{"type":"ping","id":1,"at_ms":0}', "The first message must be hello."),
        (b"binary", "The first message must be hello."),
        ("garbage", "Invalid message"),
        ('{"type":"hello","version":2,"token":"x"}', "hello.version"),
        ('{"type":"hello","token":"x","more":1}', "hello.more"),
        ("[" * 60_000, "recursion limit"),
    ],
)
def test_another_first_message(server: StreamServer, session: Session, first: str | bytes, words: str) -> None:
    code, reason = close_code(server, session.id, first)
    assert code == 1008
    assert words in reason


def test_a_wrong_token_a_foreign_session_and_an_unknown_one(server: StreamServer, session: Session) -> None:
    other = server.table.open()
    wrong = json.dumps({"type": "hello", "token": "wrong"})
    assert close_code(server, session.id, wrong) == (4401, "the token is wrong")
    assert close_code(server, session.id, hello(other)) == (4401, "the token is wrong")
    assert close_code(server, "nobody", hello(session))[0] == 4404
    other.close()
    assert session.read().connections == 0


def test_too_many_connections_to_a_session_are_busy_at_once(server: StreamServer, session: Session) -> None:
    with peer(server, session) as first, peer(server, session) as second:
        first.text("ready")
        second.text("ready")
        began_s = time.monotonic()
        assert close_code(server, session.id, hello(session)) == (1013, "busy: 2 connections to this session")
        assert time.monotonic() - began_s < 1
        first.picture(noise(3), 3)  # both see it; only who sent it knows its number
        assert first.frame()[0].source_seq == 3
        header, data = second.frame()
        assert (header.source_seq, data) == (None, noise(3).tobytes())


HEADER = pack_header(Header(format=PictureFormat.RGB, seq=1, width=WIDTH_PX, height=HEIGHT_PX))


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("garbage", 1008, "Invalid message"),
        ('{"type":"control","id":1,"changes":{},"more":1}', 1008, "control.more"),
        ('{"type":"hello","token":"x"}', 1008, "hello was already sent"),
        ("x" * 70_000, 1009, "a message of more than 65536 bytes"),
        (b"", 1008, "has no header"),
        (b"garbage that is longer than 32 bytes...", 1008, "begins with b'ga'"),
        (HEADER[:16], 1008, "16 bytes has no header"),
    ],
    ids=["garbage", "unknown field", "second hello", "long text", "empty", "no header", "half a header"],
)
def test_what_is_not_of_the_protocol_ends_the_connection_not_the_session(
    server: StreamServer, session: Session, message: str | bytes, code: int, words: str
) -> None:
    found, reason = close_code(server, session.id, hello(session), message)
    assert found == code
    assert words in reason
    assert not session.over


def test_a_frame_that_claims_100_mb_is_refused_before_it_is_sent(server: StreamServer, session: Session) -> None:
    with peer(server, session) as client:
        client.text("ready")
        client.socket.socket.send(b"\x82\xff" + struct.pack(">Q", 100 << 20) + bytes(64))
        assert client.closed()[0] == 1009


def test_a_message_of_5_mib_ends_the_connection_not_the_session(server: StreamServer, session: Session) -> None:
    """The server does not wait for the rest, so the reset may overtake its close frame."""
    with peer(server, session) as client:
        client.text("ready")
        with suppress(ConnectionClosed):
            client.socket.send(bytes(5 << 20))
        assert client.closed()[0] in (1009, 1006)
    with peer(server, session) as client:
        client.text("ready")


@pytest.mark.parametrize("form", [PictureFormat.RGB, PictureFormat.JPEG, PictureFormat.WEBP])
def test_a_bomb_is_a_bad_picture_and_the_tenth_ends_the_connection(
    server: StreamServer, session: Session, form: PictureFormat
) -> None:
    bomb = pack_header(Header(format=form, seq=1, width=60000, height=60000)) + b"\xff\xd8\xff" + bytes(200)
    with peer(server, session) as client:
        client.text("ready")
        for turn in range(10):
            client.socket.send(bomb)
            error = client.text("error")
            assert (error["code"], error["id"]) == ("bad_picture", None)
            assert "60000x60000 px is too large" in error["message"]
            if turn == 0:
                client.picture(noise(1), 1)
                assert client.frame()[1] == noise(1).tobytes()
        assert client.closed() == (1008, "10 bad pictures")
    assert session.read().accounting.taken == 1


def test_clients_that_vanish_leave_nothing_behind(server: StreamServer, session: Session) -> None:
    tasks, threads = server.tasks(), threading.active_count()
    for _ in range(8):
        with peer(server, session) as client:
            client.text("ready")
            client.picture(noise(1), 1)
            raw = client.socket.socket
            raw.send(b"\x82\xfe\x09\x20" + bytes(100))  # the beginning of a picture, then nothing
            raw.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: reset, no goodbye
            raw.close()
        wait_until(lambda: session.read().connections == 0)
    wait_until(lambda: server.tasks() <= tasks)
    wait_until(lambda: threading.active_count() <= threads)
    with peer(server, session) as client:
        client.text("ready")
        client.picture(noise(2), 2)
        while client.frame()[0].source_seq != 2:
            continue
