"""Text that is not UTF-8 on a WebSocket: the connection fails as RFC 6455 says, and nothing is logged as a fault."""

from __future__ import annotations

import logging

import pytest

from tests.fakes.bounded_server import close_code, frame, served

TEXT, CONTINUATION = 1, 0


@pytest.mark.parametrize(
    "frames",
    [
        frame(TEXT, b"\xed\xa0\x80"),  # a surrogate
        frame(TEXT, b"\xff"),
        frame(TEXT, "ä".encode()[:1]),
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xf0\x9f", fin=True),
    ],
)
def test_text_that_is_no_utf_8_is_1007_and_no_traceback(caplog: pytest.LogCaptureFixture, frames: bytes) -> None:
    with caplog.at_level(logging.INFO), served() as server, server.websocket() as line:
        line.sendall(frames)
        assert close_code(line) == 1007
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_a_letter_that_two_fragments_share_is_whole() -> None:
    with served() as server, server.websocket() as line:
        letter = "ä".encode()
        line.sendall(frame(TEXT, letter[:1], fin=False) + frame(CONTINUATION, letter[1:]))
        assert line.recv(3) == b"\x81\x011"  # one letter
