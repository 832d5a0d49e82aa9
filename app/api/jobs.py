"""Render jobs over HTTP: upload a video or give a prompt, poll, cancel, download.

File names are never taken from a request. job_store.py runs the renders.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import fastapi
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from app.disk.private import open_private
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.core.prompts import WeightedPrompt

from .access import off_loop
from .context import ApiContext
from .errors import UnknownModelError
from .job_store import Job, JobStore
from .schema import ErrorAnswer, JobOptions, JobView
from .sessions import BUSY, UNFIT, UNREAD, model_arguments
from .uploads import multipart_schema, read_multipart, read_options

_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer, "description": "no such job"}}
_WITH_VIDEO = {"required": ["video"], "properties": {"options": {"properties": {"seconds": {"type": "null"}}}}}
_WITHOUT = {
    "required": ["options"],
    "properties": {
        "video": False,
        "options": {
            "required": ["seconds"],
            "properties": {"seconds": {"type": "number"}, "out_size": {"const": "native"}},
        },
    },
}
_RULES = {"anyOf": [_WITH_VIDEO, _WITHOUT]}  # as render_arguments checks them
_MEDIA_TYPES = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/x-matroska",
    "gif": "image/gif",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningModel:
    """argument: its command-line name. size: (width, height) in px of its streams; None until it is loaded."""

    argument: str
    size: tuple[int, int] | None


def router(context: ApiContext) -> APIRouter:
    """The routes under /v1/jobs. The jobs are stopped when the application shuts down."""
    store = JobStore(context.data, context.limits.jobs)

    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        await store.clean_up_after_others()
        yield
        await store.close()

    routes = APIRouter(prefix="/v1", tags=["jobs"], lifespan=lifespan)

    @routes.post(
        "/jobs",
        status_code=202,
        operation_id="start_job",
        responses={
            413: {"model": ErrorAnswer, "description": "the video is too large"},
            **UNREAD,
            **UNFIT,
            **BUSY,
            404: {"model": ErrorAnswer, "description": "no such model"},
        },
        openapi_extra=multipart_schema(JobOptions, "video", "video/*", rules=_RULES),
    )
    async def start_job(request: Request, response: Response) -> JobView:
        """Render a video, or a prompt for some seconds, like `zoetrope render`: no frame is dropped."""
        job = await store.reserve()
        try:
            with_input, options = await _read_upload(context, request, job)
            models = await off_loop(context, model_arguments, context.model)
            arguments = render_arguments(options, models, running=_running(context), with_input=with_input)
            arguments.append(f"--max-pixels={context.limits.picture_px}")
            store.start(
                job,
                arguments,
                output_name=f"output.{options.format}",
                with_input=with_input,
                places=(context.model,),
            )
        except BaseException:  # including a cancelled request: frees its slot
            await store.delete(job)
            raise
        shown = view(job, context.root_path)
        response.headers["Location"] = shown.url
        return shown

    @routes.get("/jobs/{job_id}", operation_id="read_job", responses={**_UNKNOWN, **UNFIT})
    async def read_job(job_id: str) -> JobView:
        """The job's state and progress."""
        return view(store.get(job_id), context.root_path)

    @routes.delete("/jobs/{job_id}", status_code=204, operation_id="delete_job", responses={**_UNKNOWN, **UNFIT})
    async def delete_job(job_id: str) -> None:
        """Cancel the job if it is still running, and delete its files."""
        await store.delete(store.get(job_id))

    @routes.get(
        "/jobs/{job_id}/file",
        operation_id="download_job",
        response_class=FileResponse,
        responses={
            200: {"content": {kind: {} for kind in _MEDIA_TYPES.values()}},
            409: {"model": ErrorAnswer, "description": "not done"},
            **_UNKNOWN,
            **UNFIT,
        },
    )
    async def download_job(job_id: str) -> FileResponse:
        """The finished video."""
        file = store.finished(job_id)
        suffix = file.suffix.removeprefix(".")
        return FileResponse(file, media_type=_MEDIA_TYPES[suffix], filename=f"zoetrope.{suffix}")

    return routes


def view(job: Job, root_path: str = "") -> JobView:
    """The job at this moment. root_path: of the server (app/api/context.py)."""
    return JobView(
        id=job.id,
        state=job.state.value,
        frames=job.frames,
        total_frames=job.total_frames,
        progress=round(job.progress, 4),
        message=job.message,
        notes=list(job.notes),
        url=f"{root_path}/v1/jobs/{job.id}",
        file_url=f"{root_path}/v1/jobs/{job.id}/file",
    )


def render_arguments(
    options: JobOptions, models: dict[str, str], *, running: RunningModel, with_input: bool
) -> list[str]:
    """The options of `zoetrope render`, each as one argument, so that no value can be parsed as another option.

    models: name in a request -> command-line name. running: used if the request names none, at the size of the live
    streams. Raises InputError, UnknownModelError.
    """
    if options.model is not None and options.model not in models:
        raise UnknownModelError(
            f"There is no model {options.model!r} on this server.", "Choose one from GET /v1/models."
        )
    model = running.argument if options.model is None else models[options.model]
    arguments = [f"--model={model}", f"--aspect={options.aspect}", f"--out-size={options.out_size}"]
    if model == running.argument and running.size is not None:
        arguments.append(f"--size={running.size[0]}x{running.size[1]}")
    if with_input and options.seconds is not None:
        raise InputError("seconds was given with a video.", "Use it only for jobs without a video.")
    if not with_input:
        if options.seconds is None:
            raise InputError("A job without a video needs a length.", "Give options.seconds, or send a video.")
        if options.out_size == "source":
            raise InputError("out_size is source, but there is no video.", "Leave it out.")
        seconds = max(options.seconds, 1 / options.fps)
        arguments += ["--prompt-only", f"--seconds={seconds!r}", f"--fps={options.fps!r}"]
    control = Control.of(options.controls.changes())
    return arguments + [_argument(name, value) for name, value in control.changes().items()]


def _argument(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, tuple):
        value = " | ".join(map(_prompt_text, value))
    text = str(value)
    assert "\0" not in text, "ControlChanges refuses it"
    return f"--{flag}={text}"


def _prompt_text(prompt: WeightedPrompt) -> str:
    assert "|" not in prompt.text, "PromptPart refuses it"
    return f"{prompt.text}:{prompt.weight!r}"


def _running(context: ApiContext) -> RunningModel:
    ready = context.table.workers.status.ready
    size = (ready.info.width, ready.info.height) if ready is not None else None
    return RunningModel(argument=context.model, size=size)


async def _read_upload(context: ApiContext, request: Request, job: Job) -> tuple[bool, JobOptions]:
    """Write the upload to the job's folder. Returns whether there was a video, and the options."""
    sink = await off_loop(context, open_private, job.input)
    try:
        fields, with_input = await read_multipart(
            context, request, file_field="video", sink=sink, max_bytes=context.limits.upload_bytes
        )
    finally:
        await off_loop(context, sink.close)
    return with_input, read_options(JobOptions, fields)
