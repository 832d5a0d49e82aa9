"""Render jobs: a bounded queue, run one at a time, each as `zoetrope render` in its own process and folder.

All file names below the folder are chosen here. Used from one event loop. Independent of HTTP and of models.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from app.disk.locks import HeldLock, is_held
from app.disk.private import CHILD_UMASK, private_folder
from app.worker.handle import BusyError
from pipelines.core.errors import OutputError

from .errors import NotReadyError, UnknownJobError
from .told import told

_CODE_FOLDER = Path(__file__).resolve().parents[2]  # Zoetrope runs from its checkout
_PROGRESS = re.compile(r"\b(\d+)/(\d+|\?) \[")  # tqdm's
_LINE_ENDS = re.compile(r"[\r\n]+")
_KEPT_JOBS = 16  # finished ones, with their files
_KEPT_S = 24 * 3600.0
_TIDY_S = 0.1
_STOP_S = 5.0
_ERROR = "zoetrope: "  # begins the render's error messages
_KEPT_LINES = 20
_READ_BYTES = 4096
_MAX_MESSAGE = 500
_INPUT_NAME = "input"
_LOCK_NAME = "running.lock"
_TIDYING = ".tidying.lock"  # held while a process makes its folder, or deletes those of others


class JobState(Enum):
    """A job's state; the value is its name in JSON."""

    WAITING = "waiting"  # for its upload, or for the previous job
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """The state is final."""
        return self not in (JobState.WAITING, JobState.RUNNING)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One render. output_name: of the file in `folder`. message: why it failed, for the user."""

    id: str
    folder: Path
    output_name: str = ""
    state: JobState = JobState.WAITING
    frames: int = 0
    total_frames: int | None = None
    message: str = ""
    ended_s: float = 0.0
    places: tuple[str, ...] = ()
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))

    @property
    def input(self) -> Path:
        """The uploaded file."""
        return self.folder / _INPUT_NAME

    @property
    def output(self) -> Path:
        """The rendered video."""
        return self.folder / self.output_name

    @property
    def progress(self) -> float:
        """0 to 1, as far as it is known."""
        if self.state is JobState.DONE:
            return 1.0
        return min(1.0, self.frames / self.total_frames) if self.total_frames else 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the render has said so far, its errors aside; oldest first, without the places of files."""
        return tuple(_cleaned(self, line) for line in self.lines if not line.startswith(_ERROR))

    def read_line(self, line: str) -> None:
        """Parse one line of the render's output: progress, or a message."""
        match = _PROGRESS.search(line)
        if match is not None:
            self.frames = int(match[1])
            self.total_frames = None if match[2] == "?" else int(match[2])
        elif line.strip():
            self.lines.append(line.strip())


class JobStore:
    """All jobs of this process. data: files are kept in a folder below it, which is locked while this process lives.

    maximum: jobs queued or running. kept_s: how long finished ones are kept.
    """

    def __init__(self, data: Path, maximum: int, *, kept_s: float = _KEPT_S) -> None:
        self._jobs_folder = data / "jobs"
        self._root = self._jobs_folder / secrets.token_hex(8)
        self._lock: HeldLock | None = None
        self._folders = threading.Lock()  # for making and leaving them
        self._max = maximum
        self._kept_s = kept_s
        self._tidying: set[asyncio.Task[None]] = set()
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._render_slot = asyncio.Semaphore(1)
        self._closed = False

    async def reserve(self) -> Job:
        """A new job with a folder for its upload. Raises BusyError immediately if there are too many."""
        busy = sum(not job.state.over for job in self._jobs.values())
        if self._closed or busy >= self._max:
            raise BusyError(
                f"Busy: {busy} render jobs are queued or running.", "Try again when one has finished, or cancel one."
            )
        name = secrets.token_urlsafe(16)
        job = self._jobs[name] = Job(id=name, folder=self._root / secrets.token_hex(8))
        try:
            await asyncio.to_thread(self._make, job.folder)
            await self._tidy()
        except OSError as error:
            await self.delete(job)
            raise OutputError(
                f"A folder for the job cannot be made ({error.strerror}).",
                "Is the server's disk full, or its data folder read-only? Nothing was started.",
            ) from error
        except BaseException:  # including a cancelled request: frees its slot
            await self.delete(job)
            raise
        return job

    def _make(self, folder: Path) -> None:
        """Make a job's folder, and before the first one this process's own with its lock. Raises OSError."""
        with self._folders:
            private_folder(self._jobs_folder)
            if self._lock is None:
                tidying = HeldLock(self._jobs_folder / _TIDYING, patience_s=_STOP_S)
                try:
                    private_folder(self._root)
                    self._lock = HeldLock(self._root / _LOCK_NAME)
                finally:
                    tidying.release()
            private_folder(folder)

    def _remove(self, folder: Path) -> None:
        """Delete a job's folder, and after the last job this process's own. Never raises."""
        shutil.rmtree(folder, ignore_errors=True)
        with self._folders:
            if not self._jobs and self._lock is not None:
                self._lock.release()
                self._lock = None
                shutil.rmtree(self._root, ignore_errors=True)

    def start(
        self, job: Job, arguments: Sequence[str], *, output_name: str, with_input: bool, places: Sequence[str] = ()
    ) -> None:
        """Queue the render. arguments: options of `zoetrope render`. places: paths of which messages tell the last name
        only, besides those that begin at the root."""
        job.places = tuple(places)
        job.output_name = output_name
        paths = [str(job.input)] if with_input else []
        command = [sys.executable, "-m", "app", "render", *arguments, "--", *paths, str(job.output)]
        self._tasks[job.id] = asyncio.create_task(self._run(job, command), name=f"render {job.folder.name}")

    def get(self, job_id: str) -> Job:
        """The job with that id. Raises UnknownJobError."""
        job = self._jobs.get(job_id)
        if job is None:
            raise UnknownJobError("There is no such job.", "It may have been deleted; start a new one.")
        return job

    def finished(self, job_id: str) -> Path:
        """The video of a finished job. Raises UnknownJobError, NotReadyError."""
        job = self.get(job_id)
        if job.state is not JobState.DONE:
            raise NotReadyError(
                f"The job is {job.state.value}: there is no video.", "Download it when the job is done."
            )
        if not job.output.is_file():
            raise UnknownJobError("The job's video is gone from the server's disk.", "Start the job again.")
        return job.output

    async def delete(self, job: Job) -> None:
        """Stop the job and delete it with its files."""
        task = self._tasks.pop(job.id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._end(job, JobState.CANCELLED)
        self._jobs.pop(job.id, None)
        await asyncio.to_thread(self._remove, job.folder)

    async def close(self) -> None:
        """Stop and delete all jobs; refuse new ones. Idempotent."""
        self._closed = True
        for job in tuple(self._jobs.values()):
            await self.delete(job)

    async def clean_up_after_others(self) -> None:
        """Delete what killed processes have left behind."""
        await asyncio.to_thread(_delete_orphans, self._jobs_folder)

    async def _run(self, job: Job, command: Sequence[str]) -> None:
        status = 1
        try:
            async with self._render_slot:
                job.state = JobState.RUNNING
                status = await self._render(job, command)
        except OSError as error:
            job.lines.append(f"zoetrope: The render cannot be started ({error.strerror}).")
        except asyncio.CancelledError:
            self._end(job, JobState.CANCELLED)
            raise
        finally:  # whatever happened, it is over: a job that stayed would take the place of others
            if status and not job.state.over:
                job.message = _reason(job)
            self._end(job, JobState.FAILED if status else JobState.DONE)
            with suppress(OSError):  # it goes with the folder
                await asyncio.to_thread(job.input.unlink, missing_ok=True)

    async def _render(self, job: Job, command: Sequence[str]) -> int:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=_CODE_FOLDER,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            umask=CHILD_UMASK,
        )
        assert process.stderr is not None
        try:
            rest = ""
            while chunk := await process.stderr.read(_READ_BYTES):
                *lines, rest = _LINE_ENDS.split(rest + chunk.decode(errors="replace"))
                rest = rest[-_READ_BYTES:]
                for line in lines:
                    job.read_line(line)
            job.read_line(rest)
            return await process.wait()
        finally:
            await _stop(process)

    def _end(self, job: Job, state: JobState) -> None:
        if not job.state.over:
            job.state, job.ended_s = state, time.monotonic()
            asyncio.get_running_loop().call_later(self._kept_s + _TIDY_S, self._begin_tidying)

    def _begin_tidying(self) -> None:
        task = asyncio.get_running_loop().create_task(self._tidy(), name="tidy jobs")
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _tidy(self) -> None:
        """Delete the oldest finished jobs beyond the limit, and those that have been kept long enough."""
        over = sorted((job for job in self._jobs.values() if job.state.over), key=lambda job: job.ended_s)
        surplus = len(over) - _KEPT_JOBS
        for i, job in enumerate(over):
            if i < surplus or time.monotonic() - job.ended_s > self._kept_s:
                await self.delete(job)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Stop a running render: terminate, then kill."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):  # not wait_for, which on Python 3.11 may swallow a cancellation
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _reason(job: Job) -> str:
    """The render's last error message, without the places of files on this machine."""
    messages = [line for line in job.lines if line.startswith(_ERROR)] or list(job.lines)
    text = messages[-1].removeprefix(_ERROR) if messages else "The render ended without an error message."
    return _cleaned(job, text)


def _cleaned(job: Job, text: str) -> str:
    text = text.replace(f"{job.folder}{os.sep}", "").replace(str(job.folder), "the job's folder")
    return told(text, job.places)[:_MAX_MESSAGE]


def _delete_orphans(folder: Path) -> None:
    """Delete the folders whose process has died; never raises: at worst they stay."""
    with suppress(OSError):
        tidying = HeldLock(folder / _TIDYING, patience_s=_STOP_S)
        try:
            for entry in folder.iterdir():
                if entry.is_dir() and not is_held(entry / _LOCK_NAME):
                    shutil.rmtree(entry, ignore_errors=True)
        finally:
            tidying.release()
