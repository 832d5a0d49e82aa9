"""A WHIP push as an output: runs it on an event loop, reports its status, stops it from any thread.

Independent of SDP; the address appears in no message.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor
from contextlib import suppress

from app.session.session import Session
from pipelines.core.errors import ZoetropeError
from pipelines.core.types import Frame

from .output import OutputPhase, OutputReading
from .push_address import PushAddress
from .whip_push import PushState, WhipPush, WhipPushOptions

SCHEMES = ("https", "http")
_STOP_S = 10.0
_PHASES = {
    PushState.IDLE: OutputPhase.STARTING,
    PushState.CONNECTING: OutputPhase.STARTING,
    PushState.LIVE: OutputPhase.RUNNING,
    PushState.WAITING: OutputPhase.RETRYING,
    PushState.ENDED: OutputPhase.STOPPED,
}


class WhipOutput:
    """A running WHIP push. It pulls the session's newest frames itself; `offer` only counts them."""

    def __init__(
        self, session: Session, codecs: Executor, loop: asyncio.AbstractEventLoop, options: WhipPushOptions
    ) -> None:
        """loop: a running one. Callable from any thread. Raises InputError for an invalid address."""
        self._address = PushAddress.of(options.url, SCHEMES)
        self._push = WhipPush(session, codecs, options)
        self._loop = loop
        self._done = 0
        self._ending: tuple[OutputPhase, str] | None = None
        self._ended = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        loop.call_soon_threadsafe(self._begin)

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        if self._push.state is PushState.LIVE:
            self._done += 1

    def read(self) -> OutputReading:
        phase, text = self._ending or (_PHASES[self._push.state], self._text())
        return OutputReading(kind="whip", phase=phase, done=self._done, dropped=0, text=text)

    def stop(self) -> None:
        self._stopping = True
        with suppress(RuntimeError):  # the loop is closed and has cancelled its tasks
            self._loop.call_soon_threadsafe(self._cancel)
            self._ended.wait(_STOP_S)

    def _text(self) -> str:
        shown, trouble = self._address.shown, self._address.hide(self._push.trouble)
        if self._push.state is PushState.LIVE:
            return f"pushing to {shown}"
        return f"{shown}: {trouble} Trying again." if trouble else f"connecting to {shown}"

    # ---- on the event loop ----

    def _begin(self) -> None:
        if self._stopping:
            self._ending = (OutputPhase.STOPPED, f"stopped pushing to {self._address.shown}")
            self._ended.set()
            return
        self._task = self._loop.create_task(self._push.run(), name="whip-push")
        self._task.add_done_callback(self._over)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._ending = (OutputPhase.STOPPED, f"stopped pushing to {self._address.shown}")
        elif isinstance(error, ZoetropeError):
            self._ending = (OutputPhase.FAILED, self._address.hide(str(error)))
        else:  # an internal error
            self._ending = (OutputPhase.FAILED, "the push ended with an internal error; see the terminal")
            self._loop.call_exception_handler({"message": "WHIP push", "exception": error, "task": task})
        self._ended.set()
