"""One worker process and the pipe to it: nobody who sends waits for the worker, and its silence is noticed.

A thread of its own writes to the pipe, so that a worker that hangs holds nobody who sends; another one watches how long
nothing was heard. Independent of what the messages mean.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .messages import FromWorker, ToWorker, WorkerAlive
from .process import WorkerOptions, run_worker

_END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeSigns:
    """How a worker's life is judged. check_s: how often. silent_s: without a word for so long, it is not responding
    (/readyz says so). dead_s: then it is ended and replaced. step_s: also if one step of its loop takes longer: a fault
    of a GPU may leave a process that beats and does nothing.
    """

    check_s: float = 0.5
    silent_s: float = 5.0
    dead_s: float = 40.0
    step_s: float = 300.0

    def __post_init__(self) -> None:
        if not 0 < self.check_s < self.silent_s < self.dead_s:
            raise ValueError(f"{self} does not fit together; give 0 < check_s < silent_s < dead_s")


class WorkerLink:
    """A started process and its pipe. Thread-safe; `receive` is for one thread.

    on_silence: called by the watching thread, after `watch`, with why it is not responding, and "" when it is again.
    """

    def __init__(self, options: WorkerOptions, signs: LifeSigns, on_silence: Callable[[str], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_worker, args=(theirs, options), name="zoetrope-worker", daemon=True)
        self.process.start()
        theirs.close()
        self._signs, self._on_silence = signs, on_silence
        self._changed = threading.Condition()
        self._waiting: deque[ToWorker] = deque()
        self._over = False
        self._heard = 0  # messages
        self._step_s = 0.0  # how long the current step of its loop had taken when it was last heard
        self._watched = False
        self.hung = ""  # why it was ended; "": it was not
        for work in (self._write, self._watch):
            threading.Thread(target=work, name=f"worker-{work.__name__.strip('_')}", daemon=True).start()

    def send(self, message: ToWorker) -> None:
        """Send it soon, in order. Does nothing once the worker has died."""
        with self._changed:
            if not self._over:
                self._waiting.append(message)
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Messages that the worker has not taken."""
        return len(self._waiting)

    def receive(self) -> FromWorker:
        """The next message but signs of life. Raises EOFError or OSError when the worker has died."""
        while True:
            message: FromWorker | WorkerAlive = self._pipe.recv()
            self._heard += 1
            if not isinstance(message, WorkerAlive):
                return message
            self._step_s = message.step_s

    def watch(self) -> None:
        """It has loaded its engine: from now on it must show that it lives."""
        self._watched = True

    def end(self, patience_s: float = _END_S) -> int | None:
        """Wait until the process has ended, and kill it after `patience_s`. Returns its exit status."""
        self.process.join(patience_s)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        with self._changed:
            self._over = True
            self._waiting.clear()
            self._changed.notify_all()
        return self.process.exitcode

    def close(self) -> None:
        """After `end`, on the thread that receives or once it has ended."""
        self._pipe.close()

    # ---- its threads ----

    def _write(self) -> None:
        while (message := self._next()) is not None:
            try:
                self._pipe.send(message)
            except OSError:  # the worker has just died; whoever receives notices
                return

    def _next(self) -> ToWorker | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            return None if self._over else self._waiting.popleft()

    def _watch(self) -> None:
        """Time is counted in checks, not by the clock: while this process itself stands still, nobody is silent."""
        signs = self._signs
        heard, silent_s, told = self._heard, 0.0, ""
        while not self._ended_within(signs.check_s):
            silent_s = 0.0 if heard != self._heard or not self._watched else silent_s + signs.check_s
            heard = self._heard
            reason = self._reason(silent_s)
            if silent_s >= signs.dead_s or self._step_s >= signs.step_s:
                self.hung = reason
                self.process.kill()
                return
            if bool(reason) != bool(told):
                self._on_silence(reason)
            told = reason

    def _reason(self, silent_s: float) -> str:
        if silent_s >= self._signs.silent_s:
            return f"The worker has not responded for {silent_s:.0f} s"
        if self._step_s >= self._signs.step_s:
            return f"One step of the worker's engine has taken {self._step_s:.0f} s"
        return ""

    def _ended_within(self, seconds: float) -> bool:
        until_s = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._over, until_s - time.monotonic())
            return self._over
