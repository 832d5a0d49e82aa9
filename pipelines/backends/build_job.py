"""Owns the building of one plan in a process of its own: the job, the process, and what it reports.

A crash of a compiler or of a library ends that process only. Independent of when plans are wanted and used.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError, ZoetropeError
from pipelines.core.origin import Origin
from pipelines.core.parts import inputs_like
from pipelines.core.preparation import InputForm
from trt.errors import PlanError
from trt.key import PlanKey, differences
from trt.store import PlanStore

from .calibration.record import recorded
from .plan_keys import plan_key
from .recipe import Recipe

_NICENESS = 4  # the stream beside it gets two and a half times the share: both go on on two cores
_LAST_LINES = 5
_WATCH_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What a process needs to build one plan. key: what the plan must be for; the process checks it.

    lora_scale: the scale of the engine's LoRA files.
    """

    origin: Origin
    recipe: Recipe
    part: str
    inputs: tuple[InputForm, ...]
    key: PlanKey
    root: Path
    lora_scale: float = 1.0


class BuildProcess:
    """A running build. Terminate it with `stop`; nothing half-written stays."""

    def __init__(self, job: BuildJob) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.backends.build_job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the process has died: `wait` says why
            self._process.stdin.write(pickle.dumps(job))
            self._process.stdin.close()

    def wait(self, progress: Notify) -> None:
        """Wait until the plan is stored. Raises ModelError if it was not built, with the cause."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        refused: ModelError | None = None
        errors = _Tail(self._process.stderr)
        with self._process.stdout as reports:
            for line in reports:
                with suppress(ValueError):
                    said = json.loads(line)
                    if "error" in said:
                        refused = ModelError(said["error"], said["remedy"])
                    else:
                        progress(said["progress"])
        code = self._process.wait()
        last = errors.read()
        if refused is not None:
            raise refused
        if code:
            cause = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise ModelError(f"The process that compiles {cause}. {last}".rstrip(), "The stream goes on without it.")

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class _Tail:
    """Reads a pipe to its end in a thread, so that the writer never blocks, and keeps the last lines."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._run, args=(pipe,), daemon=True)
        self._thread.start()

    def _run(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self._lines = [*self._lines, line.decode(errors="replace").strip()][-_LAST_LINES:]

    def read(self) -> str:
        self._thread.join()
        return " ".join(filter(None, self._lines))


def build(job: BuildJob, progress: Notify) -> None:
    """Make the engine of a job, compile its part and store it. Raises ModelError, or PlanError of the store."""
    progress(f"{job.part}: loading the model")
    engine: Any = job.origin.engine()
    gc.freeze()
    gc.enable()
    if job.lora_scale != engine.core.lora_scale:
        from pipelines.core.controls import Control

        engine.core.set_engine_controls(Control(lora_scale=job.lora_scale))
    device = engine.core.model.device
    part = engine.core.part(job.part, inputs_like(job.inputs, device))
    key = plan_key(job.recipe, part, job.origin.model, job.origin.lora)
    if key != job.key:
        changed = "; ".join(str(difference) for difference in differences(job.key, key))
        raise ModelError(
            f"Files or libraries have changed since {job.origin.model} was loaded ({changed}).", "Restart Zoetrope."
        )
    if job.recipe.samples:
        progress(f"{job.part}: recording inputs")
    samples = recorded(engine, part, job.recipe.samples) if job.recipe.samples else ()

    def write(folder: Path) -> None:
        job.recipe.build(part, samples, folder, progress)

    PlanStore(job.root, progress).build(key, write)


def main() -> int:
    """Read a job from standard input and build it; report on standard output, a JSON object per line."""
    end_with_parent()
    with suppress(OSError):
        os.nice(_NICENESS)
    start_sooner()
    say = _reports(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there
    job: BuildJob = pickle.load(sys.stdin.buffer)
    try:
        build(job, lambda text: say(progress=text))
    except (ZoetropeError, PlanError) as error:
        say(error=error.message, remedy=error.remedy)
        return 1
    return 0


def start_sooner() -> None:
    """Leave out, until the engine is loaded, what takes a third of the time of that beside a running stream: garbage
    collections, which find nothing; and peft, which diffusers imports if it is installed and nothing here uses."""
    gc.disable()
    sys.modules.setdefault("peft", None)  # type: ignore[arg-type]  # what Python takes as "cannot be imported"


def end_with_parent() -> None:
    """Let this process end soon after the one that started it, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _reports(out: IO[str]) -> Callable[..., None]:
    def say(**fields: str) -> None:
        out.write(json.dumps(fields) + "\n")
        out.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())
