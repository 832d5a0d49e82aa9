"""The JSON of a session's outputs as pydantic models: one for each kind, told apart by `kind`.

Addresses and tokens are secrets: they can be written and are never shown. Does not depend on the outputs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from .schema import Strict

MAX_ADDRESS_CHARACTERS = 2048
_HOST = r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[([0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}\])"
_PORT = r":([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"


def _form(pattern: str) -> Any:
    """What an address looks like, for the document; the outputs check it themselves, and say what is wrong."""
    return Field(
        min_length=1,
        max_length=MAX_ADDRESS_CHARACTERS,
        description="SCHEME://HOST[:PORT]/... with the service's key. It is never shown again.",
        json_schema_extra={"pattern": f"^{pattern}$"},
    )


RtmpAddress = Annotated[SecretStr, _form(rf"rtmps?://{_HOST}({_PORT})?/[!-~]*")]
SrtAddress = Annotated[SecretStr, _form(rf"srt://{_HOST}{_PORT}(\?[!-~]*)?")]
WhipAddress = Annotated[SecretStr, _form(rf"https?://{_HOST}({_PORT})?(/[!-~]*)?")]
FrameRate = Annotated[int, Field(ge=1, le=120, description="Frames per second; the last frame is repeated.")]
Kilobits = Annotated[int, Field(ge=100, le=100_000, description="Kilobits a second of the picture.")]


class RecordingRequest(Strict):
    """Record to a file on the server."""

    kind: Literal["recording"]
    sound: bool = Field(
        default=False,
        description="With the sound that the session's source sends by WebRTC or WHIP. If none comes, `text` says so.",
    )


class RtmpRequest(Strict):
    """Push by RTMP or RTMPS."""

    kind: Literal["rtmp"]
    address: RtmpAddress
    frame_rate: FrameRate = 30
    video_kbps: Kilobits = 2500


class SrtRequest(Strict):
    """Push by SRT, as a caller."""

    kind: Literal["srt"]
    address: SrtAddress
    frame_rate: FrameRate = 30
    video_kbps: Kilobits = 2500


class WhipRequest(Strict):
    """Push to a WHIP server. token: its Bearer token, if it wants one."""

    kind: Literal["whip"]
    address: WhipAddress
    token: Annotated[SecretStr, Field(max_length=MAX_ADDRESS_CHARACTERS)] | None = None


class VirtualCameraRequest(Strict):
    """Show the frames as a camera of the server's machine."""

    kind: Literal["virtual_camera"]
    frame_rate: FrameRate = 30


OutputRequest = Annotated[
    RecordingRequest | RtmpRequest | SrtRequest | WhipRequest | VirtualCameraRequest, Field(discriminator="kind")
]


class OutputView(Strict):
    """An output at this moment. done, dropped: frames. text: for the user; of a failed one, why.

    recording, file_url: null but for a recording; the file is there once it is stopped.
    """

    id: str
    kind: Literal["recording", "rtmp", "srt", "whip", "virtual_camera"]
    phase: Literal["starting", "running", "retrying", "stopped", "failed"]
    done: int
    dropped: int
    text: str
    recording: str | None
    file_url: str | None


class OutputList(Strict):
    """All outputs of a session, in the order in which they were started."""

    outputs: list[OutputView]


class RecordingView(Strict):
    """A recording. running: it is still written, and cannot be downloaded yet. size: bytes so far."""

    id: str
    running: bool
    size: int
    file_url: str
