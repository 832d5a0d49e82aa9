"""How encoded packets reach a streaming service: through a separate process, relay.py for RTMP, ffmpeg for SRT.

One table of schemes. A transport is opened once and closed or aborted once. Independent of frames and encoders.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

import av

from pipelines.core.errors import InputError, OutputError

from .push_address import PushAddress

TIMEOUT_S = 5.0
_FLUSHED = {"flush_packets": "1"}
_FLV = {"flvflags": "no_duration_filesize", **_FLUSHED}
_LAST_CHARACTERS = 500


class Transport(Protocol):
    """A connection to the service. container: an open PyAV output."""

    container: Any

    def close(self) -> None:
        """End the stream cleanly. Raises av.error.FFmpegError or OSError if the service is unreachable."""
        ...

    def abort(self) -> None:
        """Abort at once, from any thread, and free a blocked writer; raises nothing."""
        ...

    def reason(self, error: Exception) -> str:
        """What went wrong; may contain secrets."""
        ...


class ThroughProcess:
    """PyAV muxes into a pipe and another program connects and sends: an unresponsive server blocks nobody else."""

    def __init__(self, command: Sequence[str], first_line: str, muxer: str, options: Mapping[str, str]) -> None:
        """first_line: written to the program first; may be empty."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        sink = _Unbuffered(self._pipe)
        sink.write(first_line.encode())
        self.container = av.open(sink, "w", format=muxer, options=dict(options))

    def close(self) -> None:
        try:
            self.container.close()
        finally:
            self._pipe.close()
            with suppress(subprocess.TimeoutExpired):  # killed below
                self._process.wait(TIMEOUT_S)
            self.abort()
            self._stderr.close()

    def abort(self) -> None:
        self._process.kill()  # does nothing once the process has been reaped
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(TIMEOUT_S)

    def reason(self, error: Exception) -> str:
        with suppress(subprocess.TimeoutExpired):  # it is exiting: its last output may still be pending
            self._process.wait(1.0)
        if self._stderr.closed:
            return _text_of(error)
        self._stderr.seek(0)
        output = self._stderr.read().decode(errors="replace").strip()
        return output[-_LAST_CHARACTERS:] or _text_of(error)


def open_relay(address: PushAddress, muxer: str, options: Mapping[str, str]) -> Transport:
    """Through relay.py: PyAV supports RTMP."""
    relay = str(Path(__file__).with_name("relay.py"))
    return ThroughProcess([sys.executable, "-I", relay], f"{address.url}\n", muxer, options)


def open_ffmpeg(address: PushAddress, muxer: str, options: Mapping[str, str]) -> Transport:
    """Through the ffmpeg program, since PyAV's wheels are built without SRT.

    The address, with any SRT passphrase, is on its command line: other users of this machine can see it in the process
    list.
    """
    command = [_ffmpeg_with(address.scheme), "-hide_banner", "-loglevel", "error", "-fflags", "nobuffer"]
    command += ["-f", muxer, "-analyzeduration", "1000000", "-probesize", "1000000", "-i", "pipe:0"]
    command += ["-map", "0", "-c", "copy", "-f", muxer, "-flush_packets", "1", address.url]
    return ThroughProcess(command, "", muxer, options)


class _Unbuffered:
    """A pipe that PyAV writes to: every packet is sent at once."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipe.write(rest) :]
        return len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """muxer: PyAV's name. options: of muxer and protocol. open: opens a transport."""

    muxer: str
    options: Mapping[str, str]
    open: Callable[[PushAddress, str, Mapping[str, str]], Transport]


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "rtmp": Scheme(muxer="flv", options=_FLV, open=open_relay),
        "rtmps": Scheme(muxer="flv", options=_FLV, open=open_relay),
        "srt": Scheme(muxer="mpegts", options=_FLUSHED, open=open_ffmpeg),
    }
)


def open_transport(address: PushAddress) -> Transport:
    """Open a transport. Raises OutputError for permanent errors, av.error.FFmpegError or OSError for transient ones."""
    scheme = SCHEMES[address.scheme]
    return scheme.open(address, scheme.muxer, scheme.options)


def _ffmpeg_with(protocol: str) -> str:
    """The ffmpeg program, if it supports `protocol`. Raises OutputError."""
    remedy = f"Install an ffmpeg with {protocol}: ffmpeg -protocols lists them."
    program = shutil.which("ffmpeg")
    if program is None:
        raise OutputError(f"{protocol} needs the program ffmpeg, which is not installed.", remedy)
    listed = subprocess.run([program, "-hide_banner", "-protocols"], capture_output=True, text=True, timeout=10)
    if protocol not in listed.stdout.split():
        raise OutputError(f"{program} is built without {protocol}.", remedy)
    return program


def _text_of(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def address_of(url: str) -> PushAddress:
    """A checked address of one of SCHEMES. Raises InputError."""
    address = PushAddress.of(url, tuple(SCHEMES))
    if address.scheme == "srt" and ":" not in address.shown.removeprefix("srt://"):
        raise InputError("The address to push to has no port.", "Give srt://HOST:PORT.")
    return address
