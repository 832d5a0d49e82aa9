"""The JSON messages of the frame stream: typed, versioned, unknown fields rejected, discriminated by "type".

Used on the WebSocket and on WebRTC's data channel; the AsyncAPI document is generated from them.
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
from app.api.told import Told
from app.session.session import SessionReading
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS
from pipelines.core.errors import ControlError, InputError
from pipelines.core.types import ReuseReport

PROTOCOL_VERSION = 1
MAX_ID = 2**53 - 1  # JavaScript's largest safe integer
MAX_SEQ = 2**32 - 1


class CloseCode(IntEnum):
    """Why a WebSocket was closed."""

    CLOSED = 1000  # by request, or because the session has ended; an `ended` message says why
    SHUTDOWN = 1001  # the server is shutting down
    POLICY = 1008  # protocol violation
    TOO_BIG = 1009  # a message is too large
    BUSY = 1013  # too many connections; try again later
    WRONG_TOKEN = 4401
    FOREIGN_ORIGIN = 4403
    UNKNOWN_SESSION = 4404
    TIMEOUT = 4408  # no hello in time, or frames not acknowledged
    TOO_MANY = 4429  # message rate exceeded


class MessageError(InputError):
    """An invalid text message."""


class _ChangesSchema:
    """Accepts any JSON object (the control table validates it later), but documents the full schema."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(ControlChanges.__pydantic_core_schema__)


def _require_type(schema: dict[str, Any]) -> None:
    """Make "type" required in the schema: its default is for Python code only."""
    if "type" in schema["properties"]:
        schema["required"] = ["type", *schema.get("required", ())]
        schema["properties"]["type"].pop("default")


class Message(BaseModel):
    """Base of all messages: frozen, strict, unknown fields rejected."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, json_schema_extra=_require_type
    )


Id = Annotated[int, Field(ge=0, le=MAX_ID, description="Chosen by the client; echoed in the reply.")]
AtMs = Annotated[float, Field(allow_inf_nan=False)]

# ---- client to server -----------------------------------------------------------------------------------------------


class Hello(Message):
    """The first message, within 10 s. token: the session's. format, quality (JPEG and WebP): of the output frames."""

    type: Literal["hello"] = "hello"
    version: Literal[1] = 1
    token: str = Field(max_length=200, repr=False)
    format: Literal["jpeg", "webp", "rgb"] = "jpeg"
    quality: int = Field(default=85, ge=1, le=100)
    send_stats_ms: int = Field(default=500, ge=100, le=60_000, description="How often stats are sent.")


class ControlMessage(Message):
    """Change controls by name, all or nothing. The reply is applied or error."""

    type: Literal["control"] = "control"
    id: Id
    changes: Annotated[dict[str, JsonValue], _ChangesSchema]


class SourceMessage(Message):
    """Generate from the prompt alone, or from the pictures sent. The reply is applied."""

    type: Literal["source"] = "source"
    id: Id
    prompt_only: bool


class Ack(Message):
    """The client has received the frame with that seq. At most 2 frames are sent unacknowledged."""

    type: Literal["ack"] = "ack"
    seq: int = Field(ge=0, le=MAX_SEQ)


class Ping(Message):
    """The reply is an immediate pong. at_ms: the client's clock, echoed."""

    type: Literal["ping"] = "ping"
    id: Id
    at_ms: AtMs


class Close(Message):
    """End the session now. After merely closing the connection, a client can reconnect within the grace period."""

    type: Literal["close"] = "close"


ClientMessage = Annotated[
    Hello | ControlMessage | SourceMessage | Ack | Ping | Close, Field(discriminator="type", title="ClientMessage")
]

# ---- server to client -----------------------------------------------------------------------------------------------


class Ready(Message):
    """The stream is open: after hello, and again after a worker restart. controls: their current values."""

    type: Literal["ready"] = "ready"
    version: Literal[1] = 1
    session: str
    info: StreamFacts
    controls: dict[str, Any]


class Taken(Message):
    """The stream has taken the picture with that seq; earlier ones were taken or dropped. A picture that the similarity
    filter skips is taken too, but yields no frame."""

    type: Literal["taken"] = "taken"
    seq: int


class Applied(Message):
    """The change with that id was applied."""

    type: Literal["applied"] = "applied"
    id: Id


class ErrorMessage(Message):
    """Something was refused; nothing was changed. id: of the change; null: not related to a particular message."""

    type: Literal["error"] = "error"
    id: int | None = None
    code: str = Field(description="bad_control, bad_input, bad_picture, bad_message, worker, ...")
    message: Told
    remedy: Told


class Pong(Message):
    """The reply to ping. server_ms: the server's monotonic clock."""

    type: Literal["pong"] = "pong"
    id: Id
    at_ms: AtMs
    server_ms: float


class StreamCounts(Message):
    """in = out + dropped + skipped + in_flight, over the whole session."""

    taken: int = Field(validation_alias="in", serialization_alias="in")
    out: int
    dropped: int
    skipped: int
    in_flight: int


class ReuseView(Message):
    """hit_rate: share of the frames that took something over from earlier ones. saved: share of the picture area that
    was not computed. psnr_db: what that cost, measured where nothing moved; null: not measured yet. without_windows:
    why only whole pictures are taken over, or ""."""

    hit_rate: float
    saved: float
    psnr_db: float | None
    without_windows: str = ""


class Stats(Message):
    """Periodic statistics. frame_rate: frames per second. latency_ms: mean from arrival to result; null without input.

    stages: times over the last frames. tick_ms: the engine's. missed: finished frames that were not sent here. reuse:
    null where the stream takes nothing over from earlier frames.
    """

    type: Literal["stats"] = "stats"
    accounting: StreamCounts
    frame_rate: float
    latency_ms: float | None
    stages: dict[str, StageView]
    tick_ms: float
    missed: int
    reuse: ReuseView | None = None


class Notice(Message):
    """A notice to the user."""

    type: Literal["notice"] = "notice"
    text: Told


class Restarting(Message):
    """The worker has died and is being restarted; the session resumes with `ready`. Inputs in flight are lost."""

    type: Literal["restarting"] = "restarting"
    text: Told


class Ended(Message):
    """The session has ended; the connection is closed next."""

    type: Literal["ended"] = "ended"
    message: Told
    remedy: Told


ServerMessage = Annotated[
    Ready | Taken | Applied | ErrorMessage | Pong | Stats | Notice | Restarting | Ended,
    Field(discriminator="type", title="ServerMessage"),
]

CLIENT_MESSAGES: TypeAdapter[Hello | ControlMessage | SourceMessage | Ack | Ping | Close] = TypeAdapter(ClientMessage)
SERVER_MESSAGES: TypeAdapter[Ready | Taken | Applied | ErrorMessage | Pong | Stats | Notice | Restarting | Ended] = (
    TypeAdapter(ServerMessage)
)

# ---- serialisation ---------------------------------------------------------------------------------------------------


def parse_client(text: str) -> Hello | ControlMessage | SourceMessage | Ack | Ping | Close:
    """Parse a client's message. Raises MessageError."""
    try:
        return CLIENT_MESSAGES.validate_json(text)
    except ValidationError as error:
        raise _message_error(error) from error


def parse_server(text: str) -> Ready | Taken | Applied | ErrorMessage | Pong | Stats | Notice | Restarting | Ended:
    """Parse a server's message. Raises MessageError."""
    try:
        return SERVER_MESSAGES.validate_json(text)
    except ValidationError as error:
        raise _message_error(error) from error


def dump(message: Message) -> str:
    """A message as JSON."""
    return message.model_dump_json(by_alias=True)


def checked_changes(changes: Mapping[str, object]) -> Mapping[str, object]:
    """Returns `changes`. Raises ControlError for controls that a running stream cannot change."""
    for name in changes:
        if name in CONTROLS and name not in STREAM_CONTROLS:
            raise ControlError(
                f"{name} cannot be changed while the engine runs.", f"Start zoetrope live with --{name}."
            )
    return changes


def stream_stats(reading: SessionReading, *, tick_ms: float, missed: int, reuse: ReuseReport | None = None) -> Stats:
    """A session's statistics."""
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
        reuse=None
        if reuse is None
        else ReuseView(
            hit_rate=round(reuse.hit_rate, 3),
            saved=round(reuse.saved, 3),
            psnr_db=None if reuse.psnr_db is None else round(reuse.psnr_db, 1),
            without_windows=reuse.without_windows,
        ),
    )


def _message_error(error: ValidationError) -> MessageError:
    _, text = validation_text(error.errors(include_url=False, include_input=False, include_context=False))
    return MessageError(f"Invalid message: {text}", "See GET /v1/asyncapi.json.")
