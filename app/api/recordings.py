"""Recordings over HTTP, even after their session has ended: status, download, delete. The id is the authorisation.

app/outputs/record.py writes the files.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from app.outputs.recordings import RecordingStore, StoredRecording

from .errors import NotReadyError
from .output_schema import RecordingView
from .schema import ErrorAnswer
from .sessions import UNFIT

_MEDIA_TYPE = "video/mp4"
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer, "description": "no such recording"}}
_GROWING: dict[int | str, dict[str, Any]] = {409: {"model": ErrorAnswer, "description": "it is still being written"}}


def recording_routes(store: RecordingStore, root_path: str = "") -> APIRouter:
    """The routes under /v1/recordings. root_path: of the server (app/api/context.py)."""
    routes = APIRouter(prefix="/v1", tags=["outputs"])

    async def find(recording_id: str) -> StoredRecording:
        recording = await asyncio.to_thread(store.find, recording_id)
        if recording is None:
            raise HTTPException(404, "There is no such recording; the oldest are deleted to make room.")
        return recording

    async def find_finished(recording_id: str) -> StoredRecording:
        recording = await find(recording_id)
        if recording.running:
            raise NotReadyError("This recording is still being written.", "Stop its output first.")
        return recording

    @routes.get("/recordings/{recording_id}", operation_id="read_recording", responses={**_UNKNOWN, **UNFIT})
    async def read_recording(recording_id: str) -> RecordingView:
        """The recording's size, and whether it is still being written."""
        recording = await find(recording_id)
        return RecordingView(
            id=recording.id,
            running=recording.running,
            size=recording.size,
            file_url=f"{root_path}/v1/recordings/{recording.id}/file",
        )

    @routes.get(
        "/recordings/{recording_id}/file",
        operation_id="download_recording",
        response_class=FileResponse,
        responses={200: {"content": {_MEDIA_TYPE: {}}}, **_GROWING, **_UNKNOWN, **UNFIT},
    )
    async def download_recording(recording_id: str) -> FileResponse:
        """The recording's file."""
        recording = await find_finished(recording_id)
        name = f"zoetrope-{recording.path.name[:15]}.mp4"
        return FileResponse(recording.path, media_type=_MEDIA_TYPE, filename=name)

    @routes.delete(
        "/recordings/{recording_id}",
        status_code=204,
        operation_id="delete_recording",
        responses={**_GROWING, **_UNKNOWN, **UNFIT},
    )
    async def delete_recording(recording_id: str) -> None:
        """Delete the recording."""
        recording = await find_finished(recording_id)
        await asyncio.to_thread(store.delete, recording)

    return routes
