"""Messages that the server sends on its own: ready, restarting, notices, ended, and stats. Independent of pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.api.context import ApiContext
from app.api.schema import plain_controls, stream_facts
from app.session.session import Session
from app.worker.proxy import SessionState

from .connection import CloseConnection, Connection
from .inputs import StreamInputs
from .messages import CloseCode, Ended, ErrorMessage, Notice, Ready, Restarting, Taken, stream_stats

_POLL_S = 1.0  # the worker's notices do not trigger the listener


class StreamStates:
    """Watches a session for one client. Runs on the event loop."""

    def __init__(self, connection: Connection, session: Session, context: ApiContext, inputs: StreamInputs) -> None:
        self._connection = connection
        self._session = session
        self._inputs = inputs
        self._taken_ns: int | None = None  # last sent to the client
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._live = False  # last sent to the client
        self._noticed: set[str] = set()
        self._refused = ""

    def applied(self) -> None:
        """A change was applied: report the next refusal even if its reason is the same."""
        self._refused = ""

    async def watch(self) -> None:
        """Report every change immediately, until the session is over; then raise CloseConnection."""
        unsubscribe = self._session.proxy.listen(self._wake)
        try:
            while True:
                self._changed.clear()
                if self._session.over:
                    raise await self._end()
                await self._report_changes()
                try:
                    async with asyncio.timeout(_POLL_S):  # before Python 3.12 wait_for may swallow a cancellation
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            unsubscribe()

    async def report(self, every_s: float, missed: Callable[[], int]) -> None:
        """Send stats forever. missed: called each time."""
        while True:
            await asyncio.sleep(every_s)
            proxy = self._session.proxy
            await self._connection.send(
                stream_stats(self._session.read(), tick_ms=proxy.tick_ms, missed=missed(), reuse=proxy.reuse)
            )

    async def _report_changes(self) -> None:
        await self._report_taken()
        stream, status = self._session.proxy, self._context.table.workers.status_of(self._session.id)
        live, was_live = stream.state is SessionState.LIVE, self._live
        self._live = live
        if live and not was_live:
            await self._send_ready()
        elif was_live and not live:
            await self._connection.send(Restarting(text=status.text))
        elif not live and not self._noticed:
            await self._notice(status.text)  # still loading
        for text in (*status.notices, *filter(None, (status.silence,))):
            await self._notice(text)
        if stream.notice != self._refused:
            self._refused = stream.notice
            if self._refused:
                await self._connection.send(ErrorMessage(code="bad_control", message=self._refused, remedy=""))

    async def _report_taken(self) -> None:
        taken_ns = self._session.proxy.admitted_ns
        if taken_ns != self._taken_ns:
            self._taken_ns = taken_ns
            header = self._inputs.origin(taken_ns)
            if header is not None:
                await self._connection.send(Taken(seq=header.seq))

    async def _send_ready(self) -> None:
        info, ready = self._session.proxy.info, self._context.table.workers.status_of(self._session.id).ready
        assert info is not None, "a live stream has its info"
        fresh = ready.controls if ready is not None else {}
        controls = plain_controls({**fresh, **self._session.proxy.control.changes()})
        await self._connection.send(Ready(session=self._session.id, info=stream_facts(info), controls=controls))

    async def _notice(self, text: str) -> None:
        if text not in self._noticed:
            self._noticed.add(text)
            await self._connection.send(Notice(text=text))

    async def _end(self) -> CloseConnection:
        error, draining = self._session.error, self._context.table.draining
        if error is not None:
            ended = Ended(message=error.message, remedy=error.remedy)
        elif draining:
            ended = Ended(message="Zoetrope is shutting down.", remedy="Connect again when it is back.")
        else:
            ended = Ended(message="The session was closed.", remedy="Open a new one.")
        await self._connection.send(ended)
        return CloseConnection(CloseCode.SHUTDOWN if draining else CloseCode.CLOSED, ended.message)

    def _wake(self) -> None:
        """Called on the worker handle's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)
