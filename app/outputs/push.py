"""Pushes a session's frames to a streaming service by RTMP or SRT, and reconnects by itself.

Owns one thread. The newest frame wins; the rate is constant, the last frame is repeated. The address, which holds the
stream's key, appears in no message. Independent of sessions.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import av

from pipelines.core.errors import InputError, OutputError
from pipelines.core.types import Frame, Picture

from .live_encoder import LiveEncoder, LiveEncoding
from .output import OutputPhase, OutputReading
from .pacing import PacedFrames
from .push_address import PushAddress
from .transports import TIMEOUT_S, Transport, open_transport


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """address: from `transports.address_of`. rate: frames per second.

    size: even (width, height) in pixels; None: the first frame's. silence: add a silent sound track. first_wait_s:
    delay before reconnecting; doubled after each further failure, up to max_wait_s; a connection that lasted steady_s
    resets it.
    """

    address: PushAddress
    rate: Fraction = Fraction(30)
    size: tuple[int, int] | None = None
    video_kbps: int = 2500
    silence: bool = True
    first_wait_s: float = 1.0
    max_wait_s: float = 30.0
    steady_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= 120:
            raise InputError(f"A push at {float(self.rate):g} frames a second is not possible.", "Give 1 to 120.")
        if not 100 <= self.video_kbps <= 100_000:
            raise InputError(f"video_kbps cannot be {self.video_kbps}.", "Give 100 to 100000 kilobits a second.")
        if self.size is not None and not all(16 <= side <= 8192 and side % 2 == 0 for side in self.size):
            raise InputError(f"A push cannot be {self.size[0]}x{self.size[1]}.", "Give even sides from 16 to 8192.")
        if not 0 < self.first_wait_s <= self.max_wait_s:
            raise InputError(f"first_wait_s is {self.first_wait_s}; it must be above 0 and at most max_wait_s.")


class Push:
    """A running push. It connects when the first frame arrives."""

    def __init__(self, options: PushOptions) -> None:
        self._options = options
        self._frames = PacedFrames(options.rate)
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._phase, self._text = OutputPhase.STARTING, f"connecting to {options.address.shown} with the first frame"
        self._sent = 0
        self.connections = 0  # processes started with a stream; a service that refuses it breaks the connection later
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        self._frames.offer(frame)

    def read(self) -> OutputReading:
        with self._lock:
            return OutputReading(
                kind="push", phase=self._phase, done=self._sent, dropped=self._frames.replaced, text=self._text
            )

    def stop(self) -> None:
        self._frames.close()
        self._thread.join(TIMEOUT_S)
        with self._lock:
            transport = self._transport
        if transport is not None and self._thread.is_alive():
            transport.abort()
        self._thread.join(TIMEOUT_S)

    def _say(self, phase: OutputPhase, text: str) -> None:
        with self._lock:
            self._phase, self._text = phase, self._options.address.hide(text)

    def _run(self) -> None:
        try:
            self._push()
        finally:
            if not self.read().over:  # an internal error; the thread's hook reports it
                self._say(OutputPhase.FAILED, "the push ended with an internal error; see the terminal")

    def _push(self) -> None:
        options = self._options
        wait_s = options.first_wait_s
        while (picture := self._frames.first()) is not None:
            began_s = time.monotonic()
            try:
                broken = self._connect_and_send(picture)
            except OutputError as error:
                self._frames.close()
                self._say(OutputPhase.FAILED, str(error))
                return
            if not broken:
                break
            if time.monotonic() - began_s >= options.steady_s:
                wait_s = options.first_wait_s
            self._say(OutputPhase.RETRYING, f"{options.address.shown}: {broken}; trying again in {wait_s:g} s")
            if self._frames.wait(wait_s):
                break
            wait_s = min(2 * wait_s, options.max_wait_s)
        self._say(OutputPhase.STOPPED, f"stopped pushing to {options.address.shown}")

    def _connect_and_send(self, first: Picture) -> str:
        """One connection from start to end. Returns why it broke, or "" if it was stopped."""
        transport: Transport | None = None
        try:
            transport = open_transport(self._options.address)
            with self._lock:
                self._transport = transport
            self._send(transport, first)
        except (av.error.FFmpegError, OSError) as error:
            reason = transport.reason(error) if transport is not None else type(error).__name__
            if transport is not None:
                transport.abort()
                with suppress(av.error.FFmpegError, OSError):  # it is already broken
                    transport.close()
            return "" if self._frames.closed else reason
        finally:
            with self._lock:
                self._transport = None
        return ""

    def _send(self, transport: Transport, first: Picture) -> None:
        options = self._options
        height, width = first.shape[:2]
        encoding = LiveEncoding(
            size=options.size or (width // 2 * 2, height // 2 * 2),
            rate=options.rate,
            video_kbps=options.video_kbps,
            silence=options.silence,
        )
        encoder = LiveEncoder(transport.container, encoding)  # writes the header: here RTMP connects
        self.connections += 1
        self._say(OutputPhase.RUNNING, f"pushing to {options.address.shown}")
        self._frames.restart()
        while (ticked := self._frames.next()) is not None:
            tick, picture = ticked
            encoder.write(picture, tick)
            with self._lock:
                self._sent += 1
        encoder.finish()
        transport.close()
