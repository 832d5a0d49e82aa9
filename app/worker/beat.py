"""Signs of life of a worker, sent by a thread of its own while the loop works. Independent of engines and sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .messages import WorkerAlive


class Beat:
    """Says from `start` to `stop` that the process lives, and how long its loop has been in one step."""

    def __init__(self, send: Callable[[WorkerAlive], None], period_s: float) -> None:
        """send: thread-safe; an OSError (the front has exited) ends the beat."""
        self._send, self._period_s = send, period_s
        self._since_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def stepped(self) -> None:
        """The loop begins its next step."""
        self._since_s = time.monotonic()

    def stop(self) -> None:
        """End, without waiting. Idempotent."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            try:
                self._send(WorkerAlive(step_s=time.monotonic() - self._since_s))
            except OSError:
                return
