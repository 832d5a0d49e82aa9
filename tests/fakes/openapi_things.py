"""What made-up requests need to reach an operation: an open session, a finished job and recording, an output, a peer.

Made over HTTP, with the server's token, when they are asked for, and again after they have gone. Independent of
schemathesis.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import httpx

from tests.fakes.offers import offer

_WAIT_S = 20.0
_OPEN = 4


class Things:
    """Of one server. token: its own; empty: it needs none. `get` gives None where nothing can be made at the moment."""

    def __init__(self, token: str) -> None:
        self.server_headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.tokens: dict[str, str] = {}  # of sessions, by id
        self.etags: dict[str, str] = {}  # of peers, by id
        self._lock = threading.RLock()
        self._made: dict[str, str] = {}  # by the name of a path parameter; peers: by the path above them
        self._session: str | None = None
        self._opened: deque[str] = deque()

    def session(self, base: str) -> str | None:
        """The id of an open session of ours."""
        with self._lock:
            if self._session is not None:
                url = f"{base}/v1/sessions/{self._session}"
                if httpx.get(url, headers=self.headers_of(self._session)).status_code != 200:
                    self.forget(self._session)
            if self._session is None:
                answer = httpx.post(f"{base}/v1/sessions", headers=self.server_headers)
                if answer.status_code == 201:
                    self._session = self.keep(answer.json())
            return self._session

    def keep(self, made: dict[str, str]) -> str:
        """Remember an opened session; returns its id."""
        self.tokens[made["id"]] = made["token"]
        return made["id"]

    def free(self, base: str, opened: str) -> None:
        """Close the oldest of the sessions that a test has opened, `opened` the last: there must be places."""
        with self._lock:
            self._opened.append(opened)
            oldest = self._opened.popleft() if len(self._opened) > _OPEN else None
        if oldest is not None:
            httpx.delete(f"{base}/v1/sessions/{oldest}", headers=self.headers_of(oldest))

    def forget(self, value: str) -> None:
        """Something of ours has gone."""
        with self._lock:
            self._made = {name: made for name, made in self._made.items() if made != value}
            if self._session == value:
                self._session = None
                self._made = {name: made for name, made in self._made.items() if name in ("job_id", "recording_id")}

    def get(self, base: str, name: str, path: str) -> str | None:
        """The value of a path's parameter `name`: of something that is there."""
        makers: dict[str, Callable[[str], str | None]] = {
            "job_id": self._job,
            "recording_id": self._recording,
            "output_id": self._output,
            "peer_id": lambda base: self._peer(base, path),
        }
        key = path.rpartition("/")[0] if name == "peer_id" else name
        with self._lock:
            if key not in self._made and (made := makers[name](base)) is not None:
                self._made[key] = made
            return self._made.get(key)

    def headers_of(self, session: str) -> dict[str, str]:
        """Those that open a session's routes."""
        return {"Authorization": f"Bearer {self.tokens[session]}"}

    def _job(self, base: str) -> str | None:
        form = {"options": (None, '{"seconds": 0.1}')}
        answer = httpx.post(f"{base}/v1/jobs", files=form, headers=self.server_headers)
        if answer.status_code != 202:
            return None
        url = f"{base}{answer.json()['url']}"
        _until(lambda: httpx.get(url, headers=self.server_headers).json()["state"] == "done")
        return str(answer.json()["id"])

    def _output(self, base: str) -> str | None:
        session = self.session(base)
        if session is None:
            return None
        url = f"{base}/v1/sessions/{session}/outputs"
        answer = httpx.post(url, json={"kind": "recording"}, headers=self.headers_of(session))
        return str(answer.json()["id"]) if answer.status_code == 201 else None

    def _recording(self, base: str) -> str | None:
        output, session = self._output(base), self.session(base)
        if output is None or session is None:
            return None
        url, headers = f"{base}/v1/sessions/{session}/outputs", self.headers_of(session)

        def begun() -> bool:
            listed = httpx.get(url, headers=headers).json().get("outputs", [])
            return all(one["done"] > 0 for one in listed if one["id"] == output)

        _until(begun)
        answer = httpx.delete(f"{url}/{output}", headers=headers)
        return answer.json()["recording"] if answer.status_code == 200 else None

    def _peer(self, base: str, path: str) -> str | None:
        above = path.rpartition("/")[0]
        headers = self.server_headers
        if "{session_id}" in above:
            session = self.session(base)
            if session is None:
                return None
            above, headers = above.replace("{session_id}", session), self.headers_of(session)
        sdp = {"Content-Type": "application/sdp", **headers}
        answer = httpx.post(f"{base}{above}", content=offer(), headers=sdp)
        if answer.status_code != 201:
            return None
        peer = answer.headers["location"].rpartition("/")[2]
        self.etags[peer] = answer.headers["etag"]
        return str(peer)


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
