"""The words between the front process and a worker: small frozen records over a pipe. Pixels never travel here.

Every session is named by a short string that the front invents. Knows no pipe, no engine and no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.takes.records import TakeRecord
from pipelines.core.controls import Control
from pipelines.core.types import StreamInfo

from .shared_frames import BufferSpec

# ---- front to worker ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """Open a stream. inputs: the session's mailbox; outputs: where finished frames go."""

    session: str
    inputs: BufferSpec
    outputs: BufferSpec
    control: Control
    prompt_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeControl:
    """Apply a partial change to the session's stream."""

    session: str
    control: Control


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSource:
    """From now on generate from the prompt alone, or take the mailbox's frames. posted: inputs posted before this was
    asked for; those wait no more."""

    session: str
    prompt_only: bool
    posted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPosted:
    """A doorbell: the mailbox holds something new. At most one is under way for each session."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRelease:
    """The front has copied this output buffer; it is free again."""

    session: str
    index: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTake:
    """Begin a fresh stream with the controls of this one, and tell all that happens to it.

    take: the number of the session's take, from 1. first_seq: the number that the first input in this worker's mailbox
    had, or will have.
    """

    session: str
    take: int
    first_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTake:
    """Tell no more of that take, where it is still the one that runs; the stream goes on."""

    session: str
    take: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """Close the stream and detach from its memory."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorker:
    """Close everything and end the process."""


ToWorker = (
    OpenSession
    | ChangeControl
    | ChangeSource
    | InputPosted
    | OutputRelease
    | StartTake
    | StopTake
    | CloseSession
    | StopWorker
)

# ---- worker to front ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress:
    """What the worker is doing before it is ready."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNotice:
    """Something that the user should know of the engine for as long as it runs."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """The engine stands. controls: name to value of a fresh stream (the table's defaults and the model's own)."""

    info: StreamInfo
    controls: dict[str, object]
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFailed:
    """The engine cannot be opened; trying again would not help."""

    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The stream stands; info says what was chosen."""

    session: str
    info: StreamInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTaken:
    """The doorbell was heard; the next post rings again."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAdmitted:
    """The stream has taken this input, to make a frame of it or to skip it, and all before it are decided."""

    session: str
    captured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReady:
    """A finished frame stands in the session's output buffer `index` as `generation`. take: whose it is; 0: no
    take's."""

    session: str
    index: int
    generation: int
    take: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """Exact at the moment of sending: seen + generated == out + dropped + skipped + in_flight.

    seen: input frames that the worker knows of. generated: frames asked for from the prompt alone, and those that frame
    stages made. dropped: inputs that a newer one replaced, and finished frames that a stage or a full buffer dropped.
    in_flight: waiting for a slot, in a slot or a stage, or finished and waiting for an output buffer. tick_ms: running
    mean of the engine's tick. wait_ms: of the input admitted last, from its discovery. encode_ms, denoise_ms,
    decode_ms: of the last tick timed.
    """

    session: str
    seen: int
    generated: int
    out: int
    dropped: int
    skipped: int
    in_flight: int
    tick_ms: float
    wait_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """What the tensor library holds of the worker's GPU: in tensors, and in all (the rest is kept for reuse)."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRecords:
    """What happened to a recorded session, in order. Sent before any frame that came of it."""

    session: str
    take: int
    records: tuple[TakeRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNotice:
    """A change was refused; the session goes on as before."""

    session: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """An error ended this session; its memory is detached."""

    session: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """The answer to CloseSession: the memory is detached and may be unlinked."""

    session: str


FromWorker = (
    WorkerProgress
    | WorkerNotice
    | WorkerReady
    | WorkerFailed
    | StreamOpened
    | InputTaken
    | InputAdmitted
    | OutputReady
    | SessionStats
    | GpuMemory
    | TakeRecords
    | SessionNotice
    | SessionEnded
    | SessionClosed
)
