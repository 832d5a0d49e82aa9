"""The text messages of the frame stream: typed, versioned, unknown fields refused. JSON objects told apart by "type".

The WebSocket and WebRTC's data channel speak them; the AsyncAPI document is generated from them. Knows no socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, JsonValue, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.api.errors import validation_text
from app.api.schema import ControlChanges, StageView, StreamFacts
from app.session.session import SessionReading
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS
from pipelines.core.errors import ControlError, InputError

PROTOCOL_VERSION = 1
MAX_ID = 2**53 - 1  # what JavaScript counts exactly
MAX_SEQ = 2**32 - 1


class CloseCode(IntEnum):
    """Why a WebSocket was closed."""

    CLOSED = 1000  # as asked, or because the session has ended; an `ended` message says why
    SHUTDOWN = 1001  # the server stops
    POLICY = 1008  # not of this protocol
    TOO_BIG = 1009  # a message beyond the limits
    BUSY = 1013  # too many connections; try again later
    WRONG_TOKEN = 4401
    FOREIGN_ORIGIN = 4403
    UNKNOWN_SESSION = 4404
    TIMEOUT = 4408  # no hello in time, or frames that were not acknowledged
    TOO_MANY = 4429  # messages came faster than allowed


class MessageError(InputError):
    """A text message that is not of this protocol."""


class _ChangesSchema:
    """Any JSON object to the validator, which leaves the judgement to the control table; documented in full."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(ControlChanges.__pydantic_core_schema__)


def _require_type(schema: dict[str, Any]) -> None:
    """The default of "type" is for the one who writes a message, not for the one who sends JSON."""
    if "type" in schema["properties"]:
        schema["required"] = ["type", *schema.get("required", ())]
        schema["properties"]["type"].pop("default")


class Message(BaseModel):
    """Base of all: frozen, strict, unknown fields refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, json_schema_extra=_require_type
    )


Id = Annotated[int, Field(ge=0, le=MAX_ID, description="The client's own number; the answer carries it.")]
AtMs = Annotated[float, Field(allow_inf_nan=False)]

# ---- client to server -----------------------------------------------------------------------------------------------


class Hello(Message):
    """The first message, within 10 s. token: the session's. format, quality (JPEG and WebP): of the answers."""

    type: Literal["hello"] = "hello"
    version: Literal[1] = 1
    token: str = Field(max_length=200, repr=False)
    format: Literal["jpeg", "webp", "rgb"] = "jpeg"
    quality: int = Field(default=85, ge=1, le=100)
    send_stats_ms: int = Field(default=500, ge=100, le=60_000, description="How often stats are sent.")


class ControlMessage(Message):
    """Change controls by name; all or nothing. Answered by applied or error."""

    type: Literal["control"] = "control"
    id: Id
    changes: Annotated[dict[str, JsonValue], _ChangesSchema]


class SourceMessage(Message):
    """Generate from the prompt alone, or from the pictures that are sent. Answered by applied."""

    type: Literal["source"] = "source"
    id: Id
    prompt_only: bool


class Ack(Message):
    """The frame of that seq has been taken. At most 2 are sent ahead."""

    type: Literal["ack"] = "ack"
    seq: int = Field(ge=0, le=MAX_SEQ)


class Ping(Message):
    """Answered by pong at once. at_ms: of the client's clock, echoed."""

    type: Literal["ping"] = "ping"
    id: Id
    at_ms: AtMs


class Close(Message):
    """End the session now. Who only closes the connection can come back within the grace time."""

    type: Literal["close"] = "close"


ClientMessage = Annotated[
    Hello | ControlMessage | SourceMessage | Ack | Ping | Close, Field(discriminator="type", title="ClientMessage")
]

# ---- server to client -----------------------------------------------------------------------------------------------


class Ready(Message):
    """The stream stands: after hello, and again when the worker was restarted. controls: their values now."""

    type: Literal["ready"] = "ready"
    version: Literal[1] = 1
    session: str
    info: StreamFacts
    controls: dict[str, Any]


class Taken(Message):
    """The stream has taken your picture of that seq, and those before it are decided. One that the similarity filter
    skips is taken too, and gets no frame."""

    type: Literal["taken"] = "taken"
    seq: int


class Applied(Message):
    """The change of that id was taken."""

    type: Literal["applied"] = "applied"
    id: Id


class ErrorMessage(Message):
    """Something was refused, nothing was changed. id: of the change; null: of no message in particular."""

    type: Literal["error"] = "error"
    id: int | None = None
    code: str = Field(description="bad_control, bad_input, bad_picture, bad_message, worker, ...")
    message: str
    remedy: str


class Pong(Message):
    """The answer to ping. server_ms: of the server's monotonic clock."""

    type: Literal["pong"] = "pong"
    id: Id
    at_ms: AtMs
    server_ms: float


class StreamCounts(Message):
    """in = out + dropped + skipped + in_flight, of the session's whole life."""

    taken: int = Field(validation_alias="in", serialization_alias="in")
    out: int
    dropped: int
    skipped: int
    in_flight: int


class Stats(Message):
    """Regular figures. frame_rate: frames a second. latency_ms: mean from arrival to result; null without input.

    stages: times over the last frames. tick_ms: of the engine. missed: frames that were finished and never sent here.
    """

    type: Literal["stats"] = "stats"
    accounting: StreamCounts
    frame_rate: float
    latency_ms: float | None
    stages: dict[str, StageView]
    tick_ms: float
    missed: int


class Notice(Message):
    """Something that the user should know."""

    type: Literal["notice"] = "notice"
    text: str


class Restarting(Message):
    """The worker has died and is being restarted; the session goes on with `ready`. Inputs in flight are lost."""

    type: Literal["restarting"] = "restarting"
    text: str


class Ended(Message):
    """The session is over; the connection closes next."""

    type: Literal["ended"] = "ended"
    message: str
    remedy: str


ServerMessage = Annotated[
    Ready | Taken | Applied | ErrorMessage | Pong | Stats | Notice | Restarting | Ended,
    Field(discriminator="type", title="ServerMessage"),
]

CLIENT_MESSAGES: TypeAdapter[Hello | ControlMessage | SourceMessage | Ack | Ping | Close] = TypeAdapter(ClientMessage)
SERVER_MESSAGES: TypeAdapter[Ready | Taken | Applied | ErrorMessage | Pong | Stats | Notice | Restarting | Ended] = (
    TypeAdapter(ServerMessage)
)

# ---- there and back -------------------------------------------------------------------------------------------------


def parse_client(text: str) -> Hello | ControlMessage | SourceMessage | Ack | Ping | Close:
    """What a client has sent. Raises MessageError."""
    try:
        return CLIENT_MESSAGES.validate_json(text)
    except ValidationError as error:
        raise _message_error(error) from error


def parse_server(text: str) -> Ready | Taken | Applied | ErrorMessage | Pong | Stats | Notice | Restarting | Ended:
    """What a server has sent. Raises MessageError."""
    try:
        return SERVER_MESSAGES.validate_json(text)
    except ValidationError as error:
        raise _message_error(error) from error


def dump(message: Message) -> str:
    """A message as JSON."""
    return message.model_dump_json(by_alias=True)


def checked_changes(changes: Mapping[str, object]) -> Mapping[str, object]:
    """The same, for a running stream. Raises ControlError for those that need a new engine."""
    for name in changes:
        if name in CONTROLS and name not in STREAM_CONTROLS:
            raise ControlError(
                f"{name} cannot be changed while the engine runs.", f"Start zoetrope live with --{name}."
            )
    return changes


def stream_stats(reading: SessionReading, *, tick_ms: float, missed: int) -> Stats:
    """A session's figures."""
    counts, latency_ms = reading.accounting, reading.meter.latency_ms
    return Stats(
        accounting=StreamCounts(
            taken=counts.taken,
            out=counts.out,
            dropped=counts.dropped,
            skipped=counts.skipped,
            in_flight=counts.in_flight,
        ),
        frame_rate=round(reading.meter.frame_rate, 2),
        latency_ms=None if latency_ms is None else round(latency_ms, 2),
        stages={
            stage.value: StageView(p50_ms=times.p50_ms, p95_ms=times.p95_ms) for stage, times in reading.stages.items()
        },
        tick_ms=tick_ms,
        missed=missed,
    )


def _message_error(error: ValidationError) -> MessageError:
    _, text = validation_text(error.errors(include_url=False, include_input=False, include_context=False))
    return MessageError(f"A message does not fit: {text}", "GET /v1/asyncapi.json says what fits.")
