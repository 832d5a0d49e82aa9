"""A program: relays FLV from standard input to an RTMP address, which is the first line of input.

PyAV holds the GIL while it connects: in the front process an unresponsive server would block every session. Here it
blocks nobody else, and killing this process frees the writer. The address is not on the command line, where other users
could read it. Imports nothing of Zoetrope.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import av


class Unbuffered:
    """Returns what has arrived so far: a buffered reader would wait for seconds until its buffer is full."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        """1 to `size` bytes, or none at the end."""
        return os.read(self._descriptor, size)

    def line(self) -> str:
        """The first line."""
        line = b""
        while (letter := self.read(1)) not in (b"", b"\n"):
            line += letter
        return line.decode()


def main() -> int:
    """Exit status 0: all input was sent. 1: the reason is on standard error, without the address."""
    pipe = Unbuffered(sys.stdin.fileno())
    url = pipe.line()
    try:
        options = {"probesize": "500000", "analyzeduration": "500000", "fflags": "nobuffer"}
        with av.open(pipe, format="flv", options=options) as source:
            send(source, url)
    except (av.error.FFmpegError, OSError) as error:
        sys.stderr.write((error.strerror if isinstance(error, OSError) else None) or type(error).__name__)
        return 1
    return 0


def send(source: Any, url: str) -> None:
    """source: an open PyAV input."""
    muxing = {"flvflags": "no_duration_filesize", "flush_packets": "1"}
    with av.open(url, "w", format="flv", options=muxing) as target:
        streams = {stream: target.add_stream_from_template(stream, opaque=True) for stream in source.streams}
        target.start_encoding()
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream]
                target.mux(packet)


if __name__ == "__main__":
    sys.exit(main())
