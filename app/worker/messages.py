"""Messages between the front process and a worker: small frozen records sent over a pipe. Pixels never travel here.

Sessions are identified by a short string that the front generates. Independent of the pipe, the engine and HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.takes.records import TakeRecord
from pipelines.core.controls import Control
from pipelines.core.preparation import NOTHING_PREPARED, PreparationStatus
from pipelines.core.types import ReuseReport, StreamInfo

from .shared_frames import BufferSpec

# ---- front to worker ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """Open a stream. inputs: the session's mailbox. outputs: the buffers for finished frames."""

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
    """Generate from the prompt alone from now on, or take frames from the mailbox. posted: number of inputs posted
    before this request; those still waiting are dropped."""

    session: str
    prompt_only: bool
    posted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPosted:
    """A doorbell: the mailbox holds a new input. At most one is in flight for each session."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRelease:
    """The front has copied this output buffer, which may be reused."""

    session: str
    index: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTake:
    """Replace the stream by a new one with the same controls, and report everything that happens to it.

    take: the number of the session's take, from 1. first_seq: the sequence number of the first input in this worker's
    mailbox, past or future.
    """

    session: str
    take: int
    first_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTake:
    """Stop reporting for that take, if it is still the current one; the stream continues."""

    session: str
    take: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """Close the stream and detach from its shared memory."""

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
    """Something that the user should know about the engine while it runs."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPreparation:
    """What the engine's parts run with, and what is being prepared; sent when it changes."""

    status: PreparationStatus = NOTHING_PREPARED


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady:
    """The engine is loaded. controls: values of a new stream by name (defaults of the table and of the model). why: its
    backend was chosen; "": it has none."""

    info: StreamInfo
    controls: dict[str, object]
    threads: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFailed:
    """The engine cannot be loaded, and retrying would not help."""

    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAlive:
    """A sign of life, sent regularly. step_s: how long the current step of its loop has taken."""

    step_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The stream is open. info: its properties."""

    session: str
    info: StreamInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTaken:
    """The doorbell was noticed; the next input rings again."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAdmitted:
    """The stream has taken this input, whether to process or to skip it; the fate of all earlier ones is settled."""

    session: str
    captured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReady:
    """The session's output buffer `index` holds a finished frame as `generation`. take: the number of the take that it
    belongs to; 0 for none."""

    session: str
    index: int
    generation: int
    take: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """Exact at the moment of sending: seen + generated == out + dropped + skipped + in_flight.

    seen: input frames that the worker has noticed. generated: frames requested from the prompt alone, and those that
    frame stages added. dropped: inputs that a newer one replaced, and finished frames that a stage or a full buffer
    dropped. in_flight: waiting for a slot, in a slot or a stage, or finished and waiting for an output buffer. tick_ms:
    running mean of the engine's tick. wait_ms: how long the last admitted input waited since the worker noticed it.
    encode_ms, denoise_ms, decode_ms: of the last timed tick. reuse: None where the stream reuses nothing.
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
    reuse: ReuseReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """GPU memory that the tensor library holds: for tensors, and in total (the rest is cached for reuse)."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRecords:
    """What happened to a recorded session, in order. Sent before the frames that resulted from it."""

    session: str
    take: int
    records: tuple[TakeRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNotice:
    """A change was refused; the session continues unchanged."""

    session: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """An error ended this session; the worker has detached from its memory."""

    session: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """Answers CloseSession: the worker has detached from the memory, which may be unlinked."""

    session: str


FromWorker = (
    WorkerProgress
    | WorkerNotice
    | WorkerPreparation
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
