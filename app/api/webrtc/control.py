"""The data channel "control" of a WebRTC peer: the WebSocket's JSON messages, without pictures.

The session's token was checked with the offer: `hello` is optional and sets the interval of stats. Depends on a
channel and a session, not on the peer connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiortc import RTCDataChannel

from app.api.access import off_loop
from app.api.context import ApiContext
from app.api.errors import UnauthorisedError, status_and_code
from app.api.schema import plain_controls, stream_facts
from app.api.stream.messages import (
    Ack,
    Applied,
    Close,
    ControlMessage,
    Ended,
    ErrorMessage,
    Hello,
    Message,
    MessageError,
    Notice,
    Ping,
    Pong,
    Ready,
    Restarting,
    SourceMessage,
    Stats,
    checked_changes,
    dump,
    parse_client,
    stream_stats,
)
from app.guard.tokens import same
from app.session.session import Session
from app.worker.proxy import SessionState
from pipelines.core.errors import ZoetropeError

_POLL_S = 0.1
_PER_SECOND = 100.0  # sustained rate of a client's messages
_BURST = 200
_MAX_WAITING_BYTES = 64 << 10  # above this, stats are not sent
_FINISH_S = 0.5


class ControlChannel:
    """Handles a channel's messages and sends it the session's state.

    missed: number of frames that the peer's video did not send. end: closes the peer.
    """

    def __init__(
        self,
        channel: RTCDataChannel,
        session: Session,
        context: ApiContext,
        *,
        missed: Callable[[], int],
        end: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._session = session
        self._context = context
        self._missed = missed
        self._end = end
        self._inbox: asyncio.Queue[str | bytes] = asyncio.Queue(maxsize=_BURST)
        self._state: SessionState | None = None
        self._refused = ""
        self._noticed: set[str] = set()
        self._stats_s = 0.5
        self._finished = False
        channel.on("message", self._on_message)

    async def run(self) -> None:
        """Run until cancelled: replies, and stats twice a second or at the interval in `hello`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._handle_messages())
            group.create_task(self._report())

    async def finish(self) -> None:
        """Send `ended` if the session is over, and flush the channel."""
        if self._finished:
            return
        self._finished = True
        if self._session.over:
            error = self._session.error
            if error is not None:
                self._send(Ended(message=error.message, remedy=error.remedy))
            else:
                self._send(Ended(message="The session was closed.", remedy="Open a new one."))
        deadline_s = time.monotonic() + _FINISH_S
        while self._open and self._channel.bufferedAmount and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)

    def refuse(self, error: ZoetropeError) -> None:
        """Report why the connection is about to be closed."""
        self._send(ErrorMessage(code=status_and_code(error)[1], message=error.message, remedy=error.remedy))

    # ---- from the client ----

    def _on_message(self, message: str | bytes) -> None:
        """Called by aiortc on the event loop. A client that floods the channel is disconnected."""
        if self._inbox.full():
            self._send(ErrorMessage(code="too_many", message="Too many messages were sent.", remedy="Send fewer."))
            self._end()
        elif len(message) > self._context.limits.text_bytes:
            self._send(
                ErrorMessage(code="too_large", message="A message is too long.", remedy="Send shorter messages.")
            )
            self._end()
        else:
            self._inbox.put_nowait(message)

    async def _handle_messages(self) -> None:
        """Handle messages in order. A client that stays above the rate fills its inbox and is disconnected."""
        allowance, at_s = float(_BURST), time.monotonic()
        while True:
            text = await self._inbox.get()
            now_s = time.monotonic()
            allowance, at_s = min(_BURST, allowance + (now_s - at_s) * _PER_SECOND) - 1, now_s
            if allowance < 0:
                await asyncio.sleep(-allowance / _PER_SECOND)
            await self._handle(text)

    async def _handle(self, text: str | bytes) -> None:
        number: int | None = None
        try:
            if isinstance(text, bytes):
                raise MessageError(
                    "A binary message was sent on this channel.", "Send pictures as video, and JSON as text."
                )
            message = parse_client(text)
            match message:
                case Hello():
                    self._hello(message)
                case ControlMessage():
                    number = message.id
                    self._session.apply(checked_changes(message.changes))
                    self._send(Applied(id=message.id))
                case SourceMessage():
                    self._session.set_source(prompt_only=message.prompt_only)
                    self._send(Applied(id=message.id))
                case Ping():
                    self._send(Pong(id=message.id, at_ms=message.at_ms, server_ms=time.monotonic_ns() / 1e6))
                case Close():
                    await off_loop(self._context, self._session.close)
                case Ack():
                    pass  # frames are not sent on this channel
        except ZoetropeError as error:
            code = "bad_message" if isinstance(error, MessageError) else status_and_code(error)[1]
            self._send(ErrorMessage(id=number, code=code, message=error.message, remedy=error.remedy))
            if isinstance(error, UnauthorisedError):
                self._end()

    def _hello(self, hello: Hello) -> None:
        if not same(hello.token, self._session.token):
            raise UnauthorisedError("The token is not this session's.", "Send the same token as with the offer.")
        self._stats_s = hello.send_stats_ms / 1000
        self._state = None  # sends `ready` again

    # ---- from the session ----

    async def _report(self) -> None:
        sent_s = 0.0
        while True:
            self._report_state()
            if time.monotonic() - sent_s >= self._stats_s and self._channel.bufferedAmount < _MAX_WAITING_BYTES:
                sent_s = time.monotonic()
                self._send(await off_loop(self._context, self._stats, user=self._session.id))
            await asyncio.sleep(_POLL_S)

    def _report_state(self) -> None:
        stream = self._session.proxy
        state, info = stream.state, stream.info
        if state is SessionState.LIVE and self._state is not SessionState.LIVE:
            assert info is not None
            fresh = self._context.table.workers.status_of(self._session.id).ready
            controls = {**(fresh.controls if fresh is not None else {}), **stream.control.changes()}
            self._send(Ready(session=self._session.id, info=stream_facts(info), controls=plain_controls(controls)))
        elif state is SessionState.OPENING and self._state is SessionState.LIVE:
            self._send(Restarting(text="The worker is being restarted."))
        self._state = state
        for text in self._context.table.workers.status_of(self._session.id).notices:
            if text not in self._noticed:
                self._noticed.add(text)
                self._send(Notice(text=text))
        if stream.notice and stream.notice != self._refused:
            self._send(ErrorMessage(code="bad_control", message=stream.notice, remedy=""))
        self._refused = stream.notice

    def _stats(self) -> Stats:
        proxy = self._session.proxy
        return stream_stats(self._session.read(), tick_ms=proxy.tick_ms, missed=self._missed(), reuse=proxy.reuse)

    @property
    def _open(self) -> bool:
        return bool(self._channel.readyState == "open")

    def _send(self, message: Message) -> None:
        if self._open:
            self._channel.send(dump(message))
