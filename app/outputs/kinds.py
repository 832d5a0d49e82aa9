"""The kinds of output in one table, with what a client may ask of each.

Addresses and tokens are secrets: they can be written and are never shown. Independent of HTTP.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from pipelines.core.errors import InputError

from .manager import OutputsError
from .output import Output
from .output_kind import OutputKind, OutputRequest, OutputSetting
from .push import Push, PushOptions
from .record import Recording, RecordingOptions
from .recording_sound import SoundFormat
from .transports import address_of
from .virtual_camera import VirtualCamera, VirtualCameraOptions
from .whip_output import WhipOutput
from .whip_push import WhipPushOptions

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
Kilobits = Annotated[int, Field(ge=100, le=100_000, description="Kilobits per second of the picture.")]


class RecordingRequest(OutputRequest):
    """Record to a file on the server."""

    kind: Literal["recording"]
    sound: bool = Field(
        default=False,
        strict=True,
        description="With the sound that the session's source sends by WebRTC or WHIP. If none comes, `text` says so.",
    )


class RtmpRequest(OutputRequest):
    """Push by RTMP or RTMPS."""

    kind: Literal["rtmp"]
    address: RtmpAddress
    frame_rate: FrameRate = 30
    video_kbps: Kilobits = 2500


class SrtRequest(OutputRequest):
    """Push by SRT, as a caller."""

    kind: Literal["srt"]
    address: SrtAddress
    frame_rate: FrameRate = 30
    video_kbps: Kilobits = 2500


class WhipRequest(OutputRequest):
    """Push to a WHIP server. token: its Bearer token, if it wants one."""

    kind: Literal["whip"]
    address: WhipAddress
    token: Annotated[SecretStr, Field(max_length=MAX_ADDRESS_CHARACTERS)] | None = None


class VirtualCameraRequest(OutputRequest):
    """Show the frames as a camera of the server's machine."""

    kind: Literal["virtual_camera"]
    frame_rate: FrameRate = 30


def _recording(wanted: RecordingRequest, setting: OutputSetting) -> Output:
    store, sound = setting.recordings, setting.session.sound
    path = store.begin()
    options = RecordingOptions(
        path=path,
        sound=SoundFormat(channels=2) if wanted.sound else None,
        listen=sound.listen if wanted.sound else None,
        may_grow=store.may_grow,
        on_end=lambda: store.ended(path),
    )
    return Recording(options)


def _push(wanted: RtmpRequest | SrtRequest, setting: OutputSetting) -> Output:
    address = address_of(wanted.address.get_secret_value())
    if address.scheme.removesuffix("s") != wanted.kind:
        raise InputError(f"The address does not fit {wanted.kind}.", f"Give {wanted.kind}://HOST/...")
    setting.push_hosts.check(address.url)
    rate = Fraction(wanted.frame_rate)
    return Push(PushOptions(address=address, rate=rate, video_kbps=wanted.video_kbps))


def _whip(wanted: WhipRequest, setting: OutputSetting) -> Output:
    options = WhipPushOptions(
        url=wanted.address.get_secret_value(),
        token=wanted.token.get_secret_value() if wanted.token is not None else None,
        webrtc=setting.webrtc,
    )
    setting.push_hosts.check(options.url)
    return WhipOutput(setting.session, setting.codecs, setting.loop, options)


def _virtual_camera(wanted: VirtualCameraRequest, setting: OutputSetting) -> Output:
    info = setting.session.proxy.info
    if info is None:
        raise OutputsError("The stream is not open yet.", "Ask again when the session is live.")
    size = (max(16, info.width // 2 * 2), max(16, info.height // 2 * 2))
    return VirtualCamera(VirtualCameraOptions(size=size, rate=Fraction(wanted.frame_rate)))


OUTPUT_KINDS: tuple[OutputKind[Any], ...] = (
    OutputKind(request=RecordingRequest, make=_recording, title="Recording"),
    OutputKind(request=RtmpRequest, make=_push, title="RTMP", schemes=("rtmp", "rtmps")),
    OutputKind(request=SrtRequest, make=_push, title="SRT", schemes=("srt",)),
    OutputKind(request=WhipRequest, make=_whip, title="WHIP", schemes=("http", "https")),
    OutputKind(request=VirtualCameraRequest, make=_virtual_camera, title="Virtual camera"),
)
"""One row for each kind, in the order of the OpenAPI document."""
