"""Runs a subject in a process of its own, so that running out of memory or a crash in a library ends only that.

The process answers one request at a time over a pipe, and waits without using the device between them: several can be
alive and take turns. Independent of what the subjects are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, cast

from pipelines.core.errors import ModelError, ZoetropeError

from .card import Machine, Setup
from .figures import Segment
from .subject import Begun, MakeSubject, Say, Subject

_JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class _Said:
    text: str


@dataclass(frozen=True, slots=True)
class _Failed:
    message: str
    remedy: str


class Apart:
    """A subject in a spawned process; a context manager. Every method raises ModelError if the subject fails: what it
    raised, or how its process ended."""

    def __init__(self, make: MakeSubject, say: Say, *, timeout_s: float = 1800.0) -> None:
        """Start to load. say: what the subject says. timeout_s: the longest that one answer may take."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._say, self._timeout_s = say, timeout_s
        self._process = context.Process(target=_serve, args=(theirs, make, time.time()), daemon=True)
        self._process.start()
        theirs.close()
        self._about: tuple[Machine, Setup] | None = None

    def about(self) -> tuple[Machine, Setup]:
        """Return its machine and setup, once it is loaded and warm."""
        if self._about is None:
            self._about = cast(tuple[Machine, Setup], self._answer())
        return self._about

    def measure(self, seconds: float) -> Segment:
        """Measure one stretch. See `Subject.measure`."""
        self.about()
        try:
            self._pipe.send(seconds)
        except OSError:
            raise self._ended() from None
        return cast(Segment, self._answer())

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(_JOIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> object:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise ModelError(f"There was no answer within {self._timeout_s:.0f} s.", "Measure it alone.")
                answer = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                raise self._ended() from None
            if isinstance(answer, _Failed):
                raise ModelError(answer.message, answer.remedy)
            if not isinstance(answer, _Said):
                return answer
            self._say(answer.text)

    def _ended(self) -> ModelError:
        self._process.join(_JOIN_S)
        code = self._process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
        return ModelError(f"Its process ended by itself ({how}).", "Its last lines above may say why.")


def _serve(pipe: Connection, make: MakeSubject, started_s: float) -> None:
    """Entry point of the process. Its standard output goes to standard error: results travel over the pipe."""
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the parent decides
    subject: Subject | None = None
    try:
        subject = make(Begun(lambda text: pipe.send(_Said(text)), started_s))
        pipe.send((subject.machine, subject.setup))
        while True:
            pipe.send(subject.measure(pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is done
    except ZoetropeError as error:
        pipe.send(_Failed(error.message, error.remedy))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the result of this subject
        lines = str(error).strip().splitlines() or [""]
        pipe.send(_Failed(f"{type(error).__name__}: {lines[0]}", ""))
    finally:
        if subject is not None:
            subject.close()
