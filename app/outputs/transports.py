"""How encoded packets reach a streaming service: through a process of its own, relay.py for RTMP, ffmpeg for SRT.

One table of schemes. A transport is opened once and closed or aborted once. Knows no frames and no encoder.
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
    """A way to the service. container: an open PyAV output."""

    container: Any

    def close(self) -> None:
        """End the stream in order. Raises av.error.FFmpegError or OSError when the service is away."""
        ...

    def abort(self) -> None:
        """Let go at once, from any thread, and free a writer that is stuck; raises nothing."""
        ...

    def reason(self, error: Exception) -> str:
        """What went wrong; may contain secrets."""
        ...


class ThroughProcess:
    """PyAV muxes into a pipe, and a program of its own connects and sends: a silent server holds up nobody else."""

    def __init__(self, command: Sequence[str], first_line: str, muxer: str, options: Mapping[str, str]) -> None:
        """first_line: given to the program before anything else; may be empty."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
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
            with suppress(subprocess.TimeoutExpired):  # then it is killed
                self._process.wait(TIMEOUT_S)
            self.abort()
            self._said.close()

    def abort(self) -> None:
        self._process.kill()  # does nothing once the process was waited for
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(TIMEOUT_S)

    def reason(self, error: Exception) -> str:
        with suppress(subprocess.TimeoutExpired):  # it is ending: its last words may be on their way
            self._process.wait(1.0)
        if self._said.closed:
            return _words(error)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        return said[-_LAST_CHARACTERS:] or _words(error)


def open_relay(address: PushAddress, muxer: str, options: Mapping[str, str]) -> Transport:
    """By relay.py: PyAV speaks RTMP."""
    relay = str(Path(__file__).with_name("relay.py"))
    return ThroughProcess([sys.executable, "-I", relay], f"{address.url}\n", muxer, options)


def open_ffmpeg(address: PushAddress, muxer: str, options: Mapping[str, str]) -> Transport:
    """By the ffmpeg program, since the wheels of PyAV are built without SRT.

    It takes the address, and with it an SRT passphrase, on its command line: users of this machine can see it in the
    list of processes.
    """
    command = [_ffmpeg_with(address.scheme), "-hide_banner", "-loglevel", "error", "-fflags", "nobuffer"]
    command += ["-f", muxer, "-analyzeduration", "1000000", "-probesize", "1000000", "-i", "pipe:0"]
    command += ["-map", "0", "-c", "copy", "-f", muxer, "-flush_packets", "1", address.url]
    return ThroughProcess(command, "", muxer, options)


class _Unbuffered:
    """A pipe as PyAV writes to it: every packet leaves at once."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipe.write(rest) :]
        return len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """muxer: of PyAV. options: of muxer and protocol. open: makes a transport."""

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
    """Raises OutputError for what will never work, av.error.FFmpegError or OSError for what may next time."""
    scheme = SCHEMES[address.scheme]
    return scheme.open(address, scheme.muxer, scheme.options)


def _ffmpeg_with(protocol: str) -> str:
    """The ffmpeg program, if it speaks `protocol`. Raises OutputError."""
    remedy = f"Install an ffmpeg that has {protocol}: ffmpeg -protocols lists them."
    program = shutil.which("ffmpeg")
    if program is None:
        raise OutputError(f"{protocol} needs the program ffmpeg, which is not installed.", remedy)
    listed = subprocess.run([program, "-hide_banner", "-protocols"], capture_output=True, text=True, timeout=10)
    if protocol not in listed.stdout.split():
        raise OutputError(f"{program} is built without {protocol}.", remedy)
    return program


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def address_of(url: str) -> PushAddress:
    """A checked address of one of SCHEMES. Raises InputError."""
    address = PushAddress.of(url, tuple(SCHEMES))
    if address.scheme == "srt" and ":" not in address.shown.removeprefix("srt://"):
        raise InputError("The address to push to has no port.", "Give srt://HOST:PORT.")
    return address
