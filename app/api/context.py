"""What every route of the API is given: the sessions, the limits, a place for files, and threads for codecs."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from app.outputs.push_hosts import PushHosts
from app.session.table import SessionTable
from app.webrtc.options import WebRtcOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """What a client may send. message_bytes: a WebSocket message or an HTTP body that is no upload.

    text_bytes: a JSON message. picture_px: the pixels of a picture, checked before it is decoded. upload_bytes: a video
    for a render job. jobs: render jobs that wait or run at once. take_bytes, recording_bytes: of all takes, of all
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
    """codecs: where pictures are packed and unpacked, so that the event loop is not blocked.

    data: takes, recordings and jobs are kept below it. model: the name that the worker was started with. push_hosts:
    where clients may push to; nowhere unless told. webrtc: ICE servers, codecs and limits of peers.
    """

    table: SessionTable
    codecs: Executor
    data: Path
    model: str
    limits: ApiLimits = field(default_factory=ApiLimits)
    push_hosts: PushHosts = field(default_factory=PushHosts)
    webrtc: WebRtcOptions = field(default_factory=WebRtcOptions)
