"""The binary header: its bytes spelled out, every field's round trip, and every refusal."""

from __future__ import annotations

import struct

import pytest

from app.api.stream.wire import HEADER_BYTES, Header, PictureFormat, WireError, pack_header, parse_header

HEADER = Header(
    format=PictureFormat.JPEG, seq=0x01020304, source_seq=5, captured_ms=1.5, width=640, height=360, server_us=12_000
)
BYTES = bytes.fromhex("5a54 01 01 0000 2000 04030201 05000000 000000000000f83f 8002 6801 e02e0000")


def changed(offset: int, layout: str, value: object) -> bytes:
    message = bytearray(BYTES)
    struct.pack_into(layout, message, offset, value)
    return bytes(message)


def test_the_header_has_the_documented_bytes() -> None:
    assert len(BYTES) == HEADER_BYTES
    assert pack_header(HEADER) == BYTES
    assert parse_header(BYTES + b"picture") == HEADER


@pytest.mark.parametrize("form", list(PictureFormat))
def test_every_format_and_no_source_come_back(form: PictureFormat) -> None:
    header = Header(format=form, seq=0xFFFFFFFF, width=65535, height=1)
    assert parse_header(pack_header(header)) == header


def test_a_number_counts_modulo_32_bits_and_a_time_stays_at_its_largest() -> None:
    parsed = parse_header(
        pack_header(Header(format=PictureFormat.RGB, seq=2**32 + 7, width=1, height=1, server_us=2**40))
    )
    assert (parsed.seq, parsed.server_us) == (7, 2**32 - 1)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "0 bytes has no header"),
        (BYTES[:31], "31 bytes has no header"),
        (b"XX" + BYTES[2:], "begins with b'XX'"),
        (changed(2, "<B", 2), "Version 2"),
        (changed(3, "<B", 3), "no picture format 3"),
        (changed(4, "<H", 1), "flags 1"),
        (changed(6, "<H", 40), "header of 40 bytes"),
        (changed(16, "<d", float("nan")), "cannot be nan"),
        (changed(16, "<d", float("inf")), "cannot be inf"),
        (changed(24, "<H", 0), "0x360 px"),
        (changed(26, "<H", 0), "640x0 px"),
    ],
)
def test_what_is_no_header_is_refused_with_the_reason(message: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        parse_header(message)
