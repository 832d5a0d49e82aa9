"""Hooks for schemathesis: tokens, ids of things that are there, sample files, and the end of endless streams.

Loaded by its command line (SCHEMATHESIS_HOOKS); SERVER_TOKEN is the server's token. No route and no check is
excluded; of requests only those that a form cannot represent.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import threading
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.core.parameters import ParameterLocation

from tests.fakes.clips import make_clip
from tests.fakes.offers import offer
from tests.fakes.openapi_things import Things

_PLACEHOLDER = "Bearer of-the-session"
_STREAM_S = 0.5


class Reached:
    """The statuses that each operation has answered; written to the file REACHED at the end of the run."""

    def __init__(self, file: str | None) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[str, set[int]] = {}
        if file is not None:
            atexit.register(self._write, Path(file))

    def add(self, operation: str, status: int) -> None:
        with self._lock:
            self._statuses.setdefault(operation, set()).add(status)

    def _write(self, file: Path) -> None:
        file.write_text(json.dumps({name: sorted(statuses) for name, statuses in self._statuses.items()}))


THINGS = Things(os.environ.get("SERVER_TOKEN", ""))
REACHED = Reached(os.environ.get("REACHED"))
CALLS = count(1)
PEERS = ("/whip", "/whep", "/webrtc")


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
    """Replace made-up ids by those of something that is there, and the placeholder by the token that opens it."""
    path = case.path_parameters or {}
    case.headers = dict(case.headers or {})
    negative = case.meta is not None and case.meta.is_negative_at(ParameterLocation.PATH)
    stateful, endless = _stateful(case), case.operation.path.endswith("/mjpeg")  # which only the session's end ends
    base = _base(case)
    if "session_id" not in path:
        case.headers.update(THINGS.server_headers)
    elif not negative and not (stateful and not endless and str(path["session_id"]) in THINGS.tokens):
        path["session_id"] = THINGS.session(base) or path["session_id"]
    for name in ("job_id", "recording_id", "output_id", "peer_id"):
        if (
            name in path
            and not negative
            and not stateful
            and (made := THINGS.get(base, name, case.operation.path)) is not None
        ):
            path[name] = made
            if name == "peer_id" and next(CALLS) % 2:  # as a client does; the others try their luck
                case.headers["If-Match"] = THINGS.etags[made]
    session_id = str(path.get("session_id"))
    token = THINGS.tokens.get(session_id)
    if token is None or case.headers.get("Authorization") != _PLACEHOLDER:
        return
    case.headers["Authorization"] = f"Bearer {token}"
    if endless:
        url, headers = f"{base}/v1/sessions/{session_id}", THINGS.headers_of(session_id)
        threading.Timer(_STREAM_S, httpx.delete, (url,), {"headers": headers}).start()


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Keep the token of an opened session; forget what has ended; note what was reached."""
    operation, status, path = case.operation, response.status_code, case.path_parameters or {}
    REACHED.add(f"{operation.method.upper()} {operation.path}", status)
    if status == 201 and operation.path == "/v1/sessions":
        THINGS.keep(response.json())
    if status == 201 and not _stateful(case):
        _free_its_place(case, response, path)
    ended = status in (200, 204) and operation.method.upper() == "DELETE"
    if path and (status == 404 or ended or operation.path.endswith("/mjpeg")):
        THINGS.forget(str(path[re.findall(r"{(\w+)}", operation.path)[-1]]))  # the deepest
        if status == 404:
            THINGS.forget(str(path.get("session_id")))


def _free_its_place(case: Any, response: Any, path: dict[str, Any]) -> None:
    """Close what was opened, sessions a little later: the next ones need the places."""
    if case.operation.path == "/v1/sessions":
        THINGS.free(_base(case), response.json()["id"])
    elif case.operation.path == "/v1/whip":
        headers = response.headers
        made = {"id": headers["zoetrope-session"][0], "token": headers["zoetrope-token"][0]}
        THINGS.free(_base(case), THINGS.keep(made))
    elif "session_id" in path and case.operation.path.endswith(PEERS):
        url = f"{_base(case)}{response.headers['location'][0]}"  # its place is for the next one
        httpx.delete(url, headers=THINGS.headers_of(str(path["session_id"])))


def _stateful(case: Any) -> bool:
    """Whether the tool follows what it has opened itself, which must stay as it is."""
    return case.meta is not None and case.meta.phase.name == "stateful"


def _base(case: Any) -> str:
    parts = urlsplit(case.operation.schema.get_base_url())
    return f"{parts.scheme}://{parts.netloc}"


def picture(kind: str) -> bytes:
    """Return a small picture file."""
    target = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(target, kind)
    return target.getvalue()


def video() -> bytes:
    """Return a small video file."""
    with TemporaryDirectory() as folder:
        return make_clip(Path(folder) / "clip.mp4", frames=3).read_bytes()


for _kind in ("jpeg", "png", "webp"):
    schemathesis.openapi.media_type(f"image/{_kind}", st.just(picture(_kind)))
schemathesis.openapi.media_type("video/mp4", st.just(video()))
schemathesis.openapi.media_type("application/sdp", st.just(offer().encode()))
schemathesis.openapi.media_type(
    "application/trickle-ice-sdpfrag",
    st.just(b"a=mid:0\r\n"),
)
