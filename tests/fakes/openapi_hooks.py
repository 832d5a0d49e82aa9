"""Hooks for schemathesis: sessions' tokens, sample files for media types, and the end of endless streams.

Loaded by its command line (SCHEMATHESIS_HOOKS). No route and no check is excluded; of requests only those that a form
cannot represent.
"""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import schemathesis
from aiortc import RTCPeerConnection
from hypothesis import strategies as st
from PIL import Image
from schemathesis.core.parameters import ParameterLocation

from tests.fakes.clips import make_clip

_PLACEHOLDER = "Bearer of-the-session"
_STREAM_S = 0.5


class Sessions:
    """Tokens of the sessions opened during the run, and a session of these hooks to replace made-up ids."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._own: str | None = None

    def add(self, session_id: str, token: str) -> None:
        with self._lock:
            self._tokens[session_id] = token

    def ended(self, session_id: str) -> None:
        with self._lock:
            if self._own == session_id:
                self._own = None

    def token(self, session_id: str) -> str | None:
        return self._tokens.get(session_id)

    def own(self, base: str) -> str | None:
        """Return an open session of these hooks; None while no more can be opened."""
        with self._lock:
            if self._own is None:
                answer = httpx.post(f"{base}/v1/sessions")
                if answer.status_code == 201:
                    made = answer.json()
                    self._own = str(made["id"])
                    self._tokens[self._own] = str(made["token"])
            return self._own


SESSIONS = Sessions()


@schemathesis.auth(refresh_interval=None)
class SessionToken:
    """Makes schemathesis treat the token as authentication: it also tries requests without it and with a wrong one."""

    def get(self, case: Any, context: Any) -> str:
        return _PLACEHOLDER

    def set(self, case: Any, data: str, context: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": data}


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Exclude forms whose `prompt` is not a string: form fields are text, so any value would arrive as a valid
    prompt."""
    body = case.body if isinstance(case.body, dict) else {}
    form = case.media_type == "multipart/form-data"
    return not (form and "prompt" in body and not isinstance(body["prompt"], str))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Replace a made-up session id by that of an open session, and the placeholder by the session's token."""
    path = case.path_parameters or {}
    if "session_id" not in path:
        return
    parts = urlsplit(case.operation.schema.get_base_url())
    base = f"{parts.scheme}://{parts.netloc}"
    made_up = SESSIONS.token(str(path["session_id"])) is None
    negative = case.meta is not None and case.meta.is_negative_at(ParameterLocation.PATH)
    if made_up and not negative and (own := SESSIONS.own(base)) is not None:
        path["session_id"] = own
    session_id = str(path["session_id"])
    token = SESSIONS.token(session_id)
    if token is None or (case.headers or {}).get("Authorization") != _PLACEHOLDER:
        return
    case.headers["Authorization"] = f"Bearer {token}"
    if case.operation.path.endswith("/mjpeg"):  # the response ends with the session
        end = threading.Timer(
            _STREAM_S, httpx.delete, (f"{base}/v1/sessions/{session_id}",), {"headers": _bearer(token)}
        )
        end.start()


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Keep the token of an opened session; forget the own session once it has ended."""
    if response.status_code == 201 and case.operation.path == "/v1/sessions":
        made = response.json()
        SESSIONS.add(made["id"], made["token"])
    session_id = str((case.path_parameters or {}).get("session_id"))
    closed = response.status_code == 204 and case.operation.path == "/v1/sessions/{session_id}"
    if response.status_code == 404 or closed or case.operation.path.endswith("/mjpeg"):
        SESSIONS.ended(session_id)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def picture(kind: str) -> bytes:
    """Return a small picture file."""
    target = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(target, kind)
    return target.getvalue()


def video() -> bytes:
    """Return a small video file."""
    with TemporaryDirectory() as folder:
        return make_clip(Path(folder) / "clip.mp4", frames=3).read_bytes()


def offer() -> str:
    """Return the SDP offer of a peer that sends and receives video."""

    async def make() -> str:
        peer = RTCPeerConnection()
        peer.addTransceiver("video", "sendrecv")
        await peer.setLocalDescription(await peer.createOffer())
        made = peer.localDescription.sdp
        await peer.close()
        return str(made)

    return asyncio.run(make())


for _kind in ("jpeg", "png", "webp"):
    schemathesis.openapi.media_type(f"image/{_kind}", st.just(picture(_kind)))
schemathesis.openapi.media_type("video/mp4", st.just(video()))
schemathesis.openapi.media_type("application/sdp", st.just(offer().encode()))
schemathesis.openapi.media_type(
    "application/trickle-ice-sdpfrag", st.just(b"a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdef012345\r\n")
)
