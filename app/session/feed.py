"""A session's frames for asyncio: the newest wins, nothing queues. Depends on the session and an event loop only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from app.worker.proxy import SessionProxy
from pipelines.core.types import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A finished frame. number: counts the session's outputs from 1. missed: outputs skipped since the last one."""

    number: int
    frame: Frame
    missed: int


class Feed:
    """One consumer's view of a session: `next` gives the newest frame that it has not seen yet.

    A session may have any number of feeds. Created and used on one event loop.
    """

    def __init__(self, session: SessionProxy, *, from_newest: bool = False) -> None:
        """from_newest: `next` gives the frame that is there already, if any."""
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._seen = max(0, session.count - 1) if from_newest else session.count
        self._forget: Callable[[], None] = session.listen(self._wake)

    async def next(self, timeout_s: float | None = None) -> Delivery | None:
        """The newest unseen frame; None when the session is over or after `timeout_s`."""
        while True:
            self._event.clear()
            newest = self._session.newest(self._seen)
            if newest is not None:
                number, frame = newest
                missed = number - self._seen - 1
                self._seen = number
                return Delivery(number=number, frame=frame, missed=missed)
            if self._session.over:
                return None
            try:
                async with asyncio.timeout(timeout_s):  # before Python 3.12 wait_for may swallow a cancellation
                    await self._event.wait()
            except TimeoutError:
                return None

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        """Each time the consumer is ready, the newest frame, until the session is over."""
        while (delivery := await self.next()) is not None:
            yield delivery

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._forget()
        self._forget = lambda: None  # it knows this feed, and with it the session

    def _wake(self) -> None:
        """Called on the worker client's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)
