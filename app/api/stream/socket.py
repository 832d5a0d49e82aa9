"""The WebSocket endpoint /v1/sessions/{id}/stream: admission, and the five tasks that serve a connection.

Read, decode, send, watch, report: the first to end ends all. Nothing queues, and every wait has a timeout.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from fastapi import APIRouter
from starlette.websockets import WebSocket

from app.api.access import off_loop
from app.api.context import ApiContext
from app.api.errors import status_and_code
from app.guard.places import Places
from app.guard.rules import client_key
from app.session.session import Session
from app.session.table import UnknownSessionError
from pipelines.core.errors import ZoetropeError

from .answers import AnswerOptions, StreamAnswers
from .connection import CloseConnection, Connection, StreamLimits
from .inputs import StreamInputs
from .messages import (
    Ack,
    Applied,
    Close,
    CloseCode,
    ControlMessage,
    ErrorMessage,
    Hello,
    MessageError,
    Ping,
    Pong,
    SourceMessage,
    checked_changes,
    parse_client,
)
from .states import StreamStates
from .wire import PictureFormat


def router(context: ApiContext, limits: StreamLimits | None = None) -> APIRouter:
    """The stream's route."""
    endpoint = _StreamEndpoint(context, limits or StreamLimits())
    routes = APIRouter(tags=["stream"])

    @routes.websocket("/v1/sessions/{session_id}/stream")
    async def stream(websocket: WebSocket, session_id: str) -> None:
        await endpoint.serve(websocket, session_id)

    return routes


class _StreamEndpoint:
    """Admits clients: hello in time, an open session, its token, and not too many connections.

    Those who have not said hello have places of their own, which newcomers take from them: they keep out nobody else.
    """

    def __init__(self, context: ApiContext, limits: StreamLimits) -> None:
        self._context = context
        self._limits = limits
        self._connections = 0
        self._per_session: Counter[str] = Counter()
        self._waiting = Places(total=limits.waiting, per_address=limits.waiting_per_address)

    async def serve(self, websocket: WebSocket, session_id: str) -> None:
        """Serve one connection. Refusals are close codes after the handshake, because browsers hide why a handshake
        failed."""
        await websocket.accept()
        connection = Connection(websocket, self._context.limits, self._limits)
        try:
            message = await self._first_message(connection, client_key(websocket.client and websocket.client.host))
            reason = await self._admit(connection, session_id, message)
        except CloseConnection as refusal:
            # Without its traceback, which knows this frame: a circle would stay until the next garbage collection.
            reason = refusal.with_traceback(None)
        await connection.close(reason)

    async def _admit(self, connection: Connection, session_id: str, message: str | bytes) -> CloseConnection:
        hello = await self._hello(connection, message)
        session = self._find(session_id, hello.token)
        if self._connections >= self._limits.connections:
            raise self._busy()
        if self._per_session[session.id] >= self._limits.per_session:
            raise CloseConnection(CloseCode.BUSY, f"busy: {self._limits.per_session} connections to this session")
        self._connections += 1
        self._per_session[session.id] += 1
        session.connect()
        try:
            return await _serve(connection, session, hello, self._context, self._limits)
        finally:
            session.disconnect()
            self._connections -= 1
            self._per_session[session.id] -= 1
            self._per_session += Counter()  # removes counts of 0

    async def _first_message(self, connection: Connection, address: str) -> str | bytes:
        """Waits in a place that a newcomer may take."""
        patience = asyncio.timeout(self._limits.hello_s)
        place = self._waiting.take(address, lambda: patience.reschedule(0))  # a time in the past
        assert place is not None, "whoever has a place here is waiting"
        try:
            async with patience:
                return await connection.receive()
        except TimeoutError:
            if place.lost:
                raise self._busy() from None
            raise CloseConnection(CloseCode.TIMEOUT, f"no hello within {self._limits.hello_s:g} s") from None
        finally:
            place.leave()

    def _busy(self) -> CloseConnection:
        return CloseConnection(CloseCode.BUSY, f"busy: try again in {self._context.table.retry_after_s} s")

    async def _hello(self, connection: Connection, message: str | bytes) -> Hello:
        try:
            hello = parse_client(message) if isinstance(message, str) else None
        except MessageError as error:
            raise await connection.refuse(error) from error
        if not isinstance(hello, Hello):
            raise await connection.refuse(
                MessageError("The first message must be hello.", "Send hello with the session's token.")
            )
        return hello

    def _find(self, session_id: str, token: str) -> Session:
        try:
            self._context.table.get(session_id)
        except UnknownSessionError as error:
            raise CloseConnection(CloseCode.UNKNOWN_SESSION, error.message) from error
        try:
            return self._context.table.authorised(session_id, token)
        except UnknownSessionError as error:
            raise CloseConnection(CloseCode.WRONG_TOKEN, "the token is wrong") from error


async def _serve(
    connection: Connection, session: Session, hello: Hello, context: ApiContext, limits: StreamLimits
) -> CloseConnection:
    """Run the tasks until one ends the connection. Returns its CloseConnection."""
    inputs = StreamInputs(connection, session, context)
    options = AnswerOptions(format=PictureFormat[hello.format.upper()], quality=hello.quality, ack_s=limits.ack_s)
    answers = StreamAnswers(connection, session, context, inputs, options)
    states = StreamStates(connection, session, context, inputs)
    reader = _Reader(connection, session, context, inputs, answers, states)
    reasons: list[CloseConnection] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.run())
            tasks.create_task(inputs.run())
            tasks.create_task(answers.run())
            tasks.create_task(states.watch())
            tasks.create_task(states.report(hello.send_stats_ms / 1000, lambda: answers.missed))
    except* CloseConnection as group:
        reasons = [error for error in group.exceptions if isinstance(error, CloseConnection)]
    return next((reason for reason in reasons if reason.code is not None), CloseConnection(None))


class _Reader:
    """Reads and handles the client's messages."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        context: ApiContext,
        inputs: StreamInputs,
        answers: StreamAnswers,
        states: StreamStates,
    ) -> None:
        self._connection = connection
        self._session = session
        self._context = context
        self._inputs = inputs
        self._answers = answers
        self._states = states

    async def run(self) -> None:
        """Handle messages until the connection ends with CloseConnection."""
        while True:
            message = await self._connection.receive()
            if isinstance(message, bytes):
                await self._inputs.offer(message)
            else:
                await self._handle(message)

    async def _handle(self, text: str) -> None:
        try:
            message = parse_client(text)
        except MessageError as error:
            raise await self._connection.refuse(error) from error
        match message:
            case Ack():
                self._answers.acknowledge(message.seq)
            case ControlMessage():
                await self._change(message.id, partial(self._apply, message.changes))
            case SourceMessage():
                source = partial(self._session.set_source, prompt_only=message.prompt_only)
                await self._change(message.id, source)
            case Ping():
                server_ms = asyncio.get_running_loop().time() * 1000
                await self._connection.send(Pong(id=message.id, at_ms=message.at_ms, server_ms=server_ms))
            case Close():
                await off_loop(self._context, self._session.close)
            case Hello():
                raise await self._connection.refuse(MessageError("hello was already sent.", "Open another connection."))

    def _apply(self, changes: Mapping[str, object]) -> None:
        self._session.apply(checked_changes(changes))

    async def _change(self, number: int, change: Callable[[], None]) -> None:
        """Apply on a codec thread, since texts are checked."""
        try:
            await off_loop(self._context, change, user=self._session.id)
        except ZoetropeError as error:
            _, code = status_and_code(error)
            await self._connection.send(ErrorMessage(id=number, code=code, message=error.message, remedy=error.remedy))
        else:
            self._states.applied()
            await self._connection.send(Applied(id=number))
