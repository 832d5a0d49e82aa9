"""The JSON of the HTTP routes as pydantic models; control changes are typed from the control table.

Unknown fields are rejected. Independent of the routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.session.session import SessionReading
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS, ControlSpec
from pipelines.core.prompts import MAX_PROMPT_CHARACTERS, MAX_PROMPTS, WeightedPrompt
from pipelines.core.types import StreamInfo

from .told import ModelName, Told

if TYPE_CHECKING:
    from app.worker.handle import WorkerStatus

MAX_SECONDS = 3600.0
_ONE_PROMPT = rf"[^|\x00]{{0,{MAX_PROMPT_CHARACTERS}}}"
_NO_NUL = r"^[^\x00]*$"
_SURPLUS = 16  # unknown fields that are told one by one
_MAX_TEXT = MAX_PROMPTS * MAX_PROMPT_CHARACTERS
_PROMPT = CONTROLS["prompt"]
PROMPT_SCHEMA: dict[str, Any] = {
    "type": "string",
    "maxLength": _MAX_TEXT,
    "pattern": rf"^{_ONE_PROMPT}(\|{_ONE_PROMPT}){{0,{MAX_PROMPTS - 1}}}$",
    "description": f"One prompt, or up to {MAX_PROMPTS} to blend: 'a cat:2 | a robot'; each may end in ':weight', "
    f"from {_PROMPT.minimum:g} to {_PROMPT.maximum:g}.",
}
"""A prompt blend as one string."""


class Strict(BaseModel):
    """Base of all models: frozen, unknown fields rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, data: Any) -> Any:
        """One error for an object of many fields: each unknown one would be an error of its own, built and sorted."""
        most = len(cls.model_fields) + _SURPLUS
        if isinstance(data, dict) and len(data) > most:
            raise PydanticCustomError("too_many_fields", "It has {count} fields", {"count": len(data)})
        return data


def _integral_to_int(value: object) -> object:
    """JSON has one number type: 3.0 is an integer (JSON Schema Validation 2020-12, section 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class PromptPart(Strict):
    """One prompt of a blend. weight: relative to the others."""

    text: str = Field(max_length=MAX_PROMPT_CHARACTERS, pattern=r"^[^|\x00]*$")
    weight: float = Field(default=1.0, ge=_PROMPT.minimum, le=_PROMPT.maximum, allow_inf_nan=False)


class Changes(Strict):
    """Base of `ControlChanges`: only fields that are set change anything."""

    model_config = ConfigDict(strict=True)

    def changes(self) -> dict[str, object]:
        """The fields that are set, in the form of `Control.of`."""
        return self.model_dump(exclude_unset=True)


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # None means "not set" here and is not a valid value


def control_type(spec: ControlSpec) -> Any:
    """The type annotation of a control's JSON value, with its range."""
    match spec.kind:
        case "float":
            return Annotated[float, Field(ge=spec.minimum, le=spec.maximum, allow_inf_nan=False)]
        case "int":
            assert spec.minimum is not None
            assert spec.maximum is not None
            return Annotated[int, Field(ge=int(spec.minimum), le=int(spec.maximum)), BeforeValidator(_integral_to_int)]
        case "bool":
            return bool
        case "choice":
            return Literal[spec.choices]
        case "text":
            return Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS, pattern=_NO_NUL)]
    text = Annotated[str, Field(max_length=_MAX_TEXT, pattern=_NO_NUL), WithJsonSchema(PROMPT_SCHEMA)]
    return text | Annotated[list[PromptPart], Field(max_length=MAX_PROMPTS)]


def _control_field(spec: ControlSpec) -> Any:
    takes_effect = f" Takes effect at the {spec.propagation.value}."
    unit = f" In {spec.unit}." if spec.unit else ""
    return (
        control_type(spec),
        Field(default=None, description=spec.help + unit + takes_effect, json_schema_extra=_drop_default),
    )


if TYPE_CHECKING:
    ControlChanges = Changes
else:
    ControlChanges = create_model(
        "ControlChanges",
        __base__=Changes,
        __doc__="Control changes: names, types and ranges of the control table. Others stay unchanged.",
        **{name: _control_field(CONTROLS[name]) for name in STREAM_CONTROLS},
    )


class OpenRequest(Strict):
    """How a new session starts. prompt_only: false for a session that receives pictures."""

    controls: ControlChanges = Field(default_factory=ControlChanges)
    prompt_only: StrictBool = True


class ChangeRequest(Strict):
    """Changes to a running session; what is not given stays unchanged."""

    controls: ControlChanges = Field(default_factory=ControlChanges)
    prompt_only: StrictBool | None = None


class StreamFacts(Strict):
    """Properties of the stream. latency_ticks: from a frame's admission to its output. takes_actions: whether the
    model responds to camera_x, camera_y, camera_zoom, push_x and push_y.
    """

    width: int
    height: int
    frame_rate: float
    frames_per_chunk: int
    latency_ticks: int
    model: ModelName
    dtype: str
    device: str
    backend: str
    takes_actions: bool


class Counts(Strict):
    """taken = out + dropped + skipped + in_flight."""

    taken: int
    out: int
    dropped: int
    skipped: int
    in_flight: int


class StageView(Strict):
    """A stage's time over the last frames, in ms."""

    p50_ms: float
    p95_ms: float


class ExecutionView(Strict):
    """How the networks of the engine run. runs: what the parts run with at the moment, as "PyTorch" or "int8
    (OpenVINO)"; empty: as the backend loaded them. builds: what is being built beside the stream, to be used once it is
    ready; empty: nothing. percent: how far that is. step: what exactly is done. failed: why the last build came to
    nothing; empty: none failed. why: the backend was chosen.
    """

    runs: Told
    builds: Told
    percent: int = Field(ge=0, le=100)
    step: Told
    failed: Told
    why: Told


class SessionView(Strict):
    """A session's current state. info: null until its stream is open. latency_ms: from capture to result, null without
    input. mjpeg_url: signed, valid for a minute.
    """

    id: str
    state: Literal["opening", "live", "ended", "closed"]
    info: StreamFacts | None
    controls: dict[str, Any]
    accounting: Counts
    frame_rate: float
    latency_ms: float | None
    stages: dict[str, StageView]
    execution: ExecutionView
    age_s: float
    connections: int
    trouble: Told
    mjpeg_url: str


class SessionOpened(Strict):
    """A new session. token: authorises its routes (`Authorization: Bearer`, or in the WebSocket's hello); not shown
    again. expires_after_s: how long the session lives without a connection."""

    id: str
    token: str
    expires_after_s: float
    info: StreamFacts | None
    stream_url: str
    mjpeg_url: str
    whip_url: str
    whep_url: str


class ModelView(Strict):
    """A model on this server. origin: bundled, in the cache, or given at startup. running: live sessions use it."""

    name: str
    origin: Literal["bundled", "cache", "given", "built in"]
    running: bool


class ModelList(Strict):
    """The models that render jobs can use."""

    models: list[ModelView]


class GenerateOptions(Strict):
    """How one picture is made."""

    model_config = ConfigDict(strict=True)

    controls: ControlChanges = Field(default_factory=ControlChanges)
    format: Literal["png", "jpeg"] = "png"
    quality: Annotated[int, Field(ge=1, le=100, description="Of a JPEG."), BeforeValidator(_integral_to_int)] = 90


class JobOptions(Strict):
    """A render job. seconds: the length, required without a video; at least one frame. fps: the frame rate without a
    video. out_size: source only with a video. model: one from GET /v1/models; null for the running one.
    """

    model_config = ConfigDict(strict=True)

    controls: ControlChanges = Field(default_factory=ControlChanges)
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)
    fps: float = Field(default=24.0, ge=1, le=240, allow_inf_nan=False)
    format: Literal["mp4", "mov", "webm", "mkv", "gif"] = "mp4"
    aspect: Literal["pad", "crop", "stretch"] = "pad"
    out_size: Literal["native", "source"] = "native"
    model: str | None = Field(default=None, max_length=200)


class JobView(Strict):
    """A render job's current state. frames: finished so far. total_frames: null while unknown. message: why it failed.
    notes: what the render has said so far, such as what became of the sound, oldest first; the last 20.
    """

    id: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    frames: int
    total_frames: int | None
    progress: float = Field(ge=0, le=1)
    message: Told
    notes: list[Told]
    url: str
    file_url: str


class ErrorDetail(Strict):
    """code: machine-readable. message: what was wrong. remedy: what to do about it."""

    code: str
    message: str
    remedy: str


class ErrorAnswer(Strict):
    """The shape of every error response."""

    error: ErrorDetail


class Health(Strict):
    """status: "ok", or what the worker is doing."""

    status: str


def stream_facts(info: StreamInfo) -> StreamFacts:
    """`info` as its JSON model."""
    return StreamFacts(
        width=info.width,
        height=info.height,
        frame_rate=float(info.frame_rate),
        frames_per_chunk=info.frames_per_chunk,
        latency_ticks=info.latency_ticks,
        model=info.model,
        dtype=info.dtype,
        device=info.device,
        backend=info.backend,
        takes_actions=info.takes_actions,
    )


def execution_view(status: WorkerStatus) -> ExecutionView:
    """How a worker's engine runs, as its JSON model."""
    now, ready = status.preparation, status.ready
    return ExecutionView(
        runs=now.runs,
        builds=now.builds,
        percent=now.percent,
        step=now.step,
        failed=now.failed,
        why="" if ready is None else ready.why,
    )


def counts_of(reading: SessionReading) -> Counts:
    """The frame counts as their JSON model."""
    counts = reading.accounting
    return Counts(
        taken=counts.taken,
        out=counts.out,
        dropped=counts.dropped,
        skipped=counts.skipped,
        in_flight=counts.in_flight,
    )


def plain_controls(values: Mapping[str, object]) -> dict[str, Any]:
    """Control values as JSON: prompts as a list of objects; only stream controls."""
    return {name: _json_value(values[name]) for name in STREAM_CONTROLS if name in values}


def _json_value(value: object) -> object:
    if not isinstance(value, tuple):
        return value
    assert all(isinstance(part, WeightedPrompt) for part in value)
    return [{"text": part.text, "weight": part.weight} for part in value]
