"""The context of every API route: session table, limits, data folder, and threads for codecs."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.outputs.push_hosts import PushHosts
from app.session.table import SessionTable
from app.session.turns import Turns
from app.webrtc.options import WebRtcOptions

if TYPE_CHECKING:
    from app.outputs.output_kind import OutputKind


def _output_kinds() -> tuple[OutputKind[Any], ...]:
    from app.outputs.kinds import OUTPUT_KINDS  # loads the media libraries: not before the worker was started

    return OUTPUT_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """Limits of what a client may send. message_bytes: of a WebSocket message, or an HTTP body that is not an upload.

    text_bytes: of a JSON message. picture_px: pixels of a picture, checked before it is decoded. upload_bytes: of a
    video for a render job. jobs: render jobs queued or running. take_bytes, recording_bytes: total of all takes, of all
    recordings.
    """

    message_bytes: int = 4 << 20
    text_bytes: int = 64 << 10
    picture_px: int = 4096 * 4096
    upload_bytes: int = 2 << 30
    jobs: int = 4
    take_bytes: int = 10 << 30
    recording_bytes: int = 10 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """codecs: threads that encode and decode pictures off the event loop. codec_threads: their number. turns: gives
    them out to the sessions.

    data: takes, recordings and jobs are kept below it. model: the name that the worker was started with. push_hosts:
    where clients may push to; nowhere by default. webrtc: ICE servers, codecs and limits of peers.
    outputs: the kinds that clients may start, for a server with more of them. root_path: the path below which a proxy
    shows the server, as from app/server/root_path.py; it precedes every path in an answer.
    """

    table: SessionTable
    codecs: Executor
    data: Path
    model: str
    limits: ApiLimits = field(default_factory=ApiLimits)
    push_hosts: PushHosts = field(default_factory=PushHosts)
    webrtc: WebRtcOptions = field(default_factory=WebRtcOptions)
    outputs: tuple[OutputKind[Any], ...] = field(default_factory=_output_kinds)
    codec_threads: int = 2
    root_path: str = ""
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", Turns(self.codecs, self.codec_threads))
