"""A typed asyncio client for Zoetrope's API: live streams, single pictures, render jobs.

    async with ZoetropeClient("http://127.0.0.1:7860") as client, client.stream(prompt="a robot") as stream:
        await stream.send(picture)
        async for frame in stream: ...

Needs httpx and websockets, not torch. The errors are in errors.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel

from app.api.pictures import pack, read_picture
from app.api.schema import JobView, ModelList, ModelView, SessionOpened, SessionView
from app.api.stream.wire import PictureFormat
from pipelines.core.types import Picture

from .errors import ServerError, UnreachableError, server_error
from .stream import ClientStream, StreamFrame

__all__ = ["ClientStream", "StreamFrame", "ZoetropeClient"]

M = TypeVar("M", bound=BaseModel)
_MAX_PX = 4096 * 4096
_POLL_S = 0.5


class ZoetropeClient:
    """One server. url: http or https. token: the server's, if it requires one.

    timeout_s: of one request, and of opening a stream.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(base_url=self._url, timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ready(self) -> bool:
        """Whether the server's worker is ready for streams. Raises UnreachableError."""
        response = await self._send("GET", "/readyz", self._headers)
        return response.status_code == 200

    async def models(self) -> list[ModelView]:
        """The models that render jobs can use."""
        return (await self._request_model(ModelList, "GET", "/v1/models")).models

    @asynccontextmanager
    async def stream(
        self,
        prompt: str | None = None,
        *,
        prompt_only: bool = False,
        picture_format: Literal["jpeg", "webp", "rgb"] = "jpeg",
        quality: int = 90,
        **controls: object,
    ) -> AsyncIterator[ClientStream]:
        """A live stream in its own session, which ends with the block. controls: as in `ClientStream.control`.

        picture_format, quality: in both directions. Raises ServerBusyError, RefusedControlError, UnreachableError.
        """
        body = {"controls": _with_prompt(prompt, controls), "prompt_only": prompt_only}
        session = await self._request_model(SessionOpened, "POST", "/v1/sessions", json=body)
        address = "ws" + self._url.removeprefix("http") + f"/v1/sessions/{session.id}/stream"
        stream = ClientStream(session, address, headers=self._headers, picture_format=picture_format, quality=quality)
        try:
            await stream.open(self._timeout_s)
            yield stream
        finally:
            await stream.close()
            with suppress(ServerError, UnreachableError):  # the session or the server has already ended
                await self.close_session(session)

    async def read_session(self, session: SessionOpened) -> SessionView:
        """A session's state, frame counts, rates and times."""
        return await self._request_model(SessionView, "GET", f"/v1/sessions/{session.id}", token=session.token)

    async def close_session(self, session: SessionOpened) -> None:
        """End a session."""
        await self._request("DELETE", f"/v1/sessions/{session.id}", token=session.token)

    async def generate(
        self, prompt: str | None = None, *, picture: Picture | None = None, **controls: object
    ) -> Picture:
        """One picture [H, W, 3] uint8 RGB: from the prompt alone, or from `picture`."""
        parts = _options({"controls": _with_prompt(prompt, controls)})
        if picture is not None:
            encoded = await asyncio.to_thread(pack, picture, PictureFormat.JPEG, 95)
            parts["picture"] = ("picture", encoded)
        response = await self._request("POST", "/v1/generate", files=parts)
        return await asyncio.to_thread(lambda: read_picture(response.content, max_px=_MAX_PX))

    async def start_job(
        self,
        prompt: str | None = None,
        *,
        video: Path | None = None,
        seconds: float | None = None,
        options: Mapping[str, object] | None = None,
        **controls: object,
    ) -> JobView:
        """Render `video`, or `seconds` from the prompt alone. options: fields of JobOptions in the OpenAPI document."""
        content: dict[str, object] = {**(options or {}), "controls": _with_prompt(prompt, controls)}
        if seconds is not None:
            content["seconds"] = seconds
        parts = _options(content)
        if video is None:
            return await self._request_model(JobView, "POST", "/v1/jobs", files=parts)
        with await asyncio.to_thread(video.open, "rb") as file:
            parts["video"] = ("video", file)
            return await self._request_model(JobView, "POST", "/v1/jobs", files=parts)

    async def read_job(self, job: JobView) -> JobView:
        """A job's state and progress."""
        return await self._request_model(JobView, "GET", f"/v1/jobs/{job.id}")

    async def finished_job(self, job: JobView) -> JobView:
        """Wait until the job is done, failed or cancelled."""
        while job.state in ("waiting", "running"):
            await asyncio.sleep(_POLL_S)
            job = await self.read_job(job)
        return job

    async def download(self, job: JobView, target: Path) -> None:
        """Write a finished job's video to `target`."""
        response = await self._request("GET", f"/v1/jobs/{job.id}/file")
        await asyncio.to_thread(target.write_bytes, response.content)

    async def delete_job(self, job: JobView) -> None:
        """Cancel a job, and delete its files on the server."""
        await self._request("DELETE", f"/v1/jobs/{job.id}")

    async def _request_model(self, model: type[M], method: str, path: str, **content: Any) -> M:
        return model.model_validate_json((await self._request(method, path, **content)).content)

    async def _request(self, method: str, path: str, token: str | None = None, **content: Any) -> httpx.Response:
        """The response. token: a session's, instead of the server's. Raises ServerError, UnreachableError."""
        headers = self._headers if token is None else {"Authorization": f"Bearer {token}"}
        response = await self._send(method, path, headers, **content)
        if response.is_error:
            raise _error_of(response)
        return response

    async def _send(self, method: str, path: str, headers: Mapping[str, str], **content: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, headers=headers, **content)
        except httpx.TransportError as error:
            raise UnreachableError(
                f"{self._url} does not respond ({type(error).__name__}).", "Is Zoetrope running there?"
            ) from error


def _with_prompt(prompt: str | None, controls: Mapping[str, object]) -> dict[str, object]:
    return {**controls, **({} if prompt is None else {"prompt": prompt})}


def _options(content: Mapping[str, object]) -> dict[str, Any]:
    """The options as part of a multipart body."""
    return {"options": (None, json.dumps(content).encode())}


def _error_of(response: httpx.Response) -> ServerError:
    retry_after_s = float(response.headers.get("retry-after", "5"))
    try:
        error = response.json()["error"]
        return server_error(error["code"], error["message"], error["remedy"], retry_after_s)
    except (ValueError, KeyError, TypeError):
        return ServerError("failed", f"The server responded {response.status_code} {response.reason_phrase}.")
