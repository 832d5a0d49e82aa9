"""Owns the progress of a build, as TensorRT's IProgressMonitor reports it. Independent of plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[str], object]


class Phases:
    """The phases of a build, which nest; says how far the outermost one is, once for each percent."""

    def __init__(self, report: Report, cancelled: Callable[[], bool]) -> None:
        self._report, self._cancelled = report, cancelled
        self._steps: dict[str, int] = {}
        self._said = ""

    def start(self, phase: str, steps: int) -> None:
        """A phase begins within those that have begun and not finished."""
        self._steps[phase] = steps
        self._say(phase, 0)

    def finish(self, phase: str) -> None:
        """A phase ends."""
        self._steps.pop(phase, None)

    def step(self, phase: str, step: int) -> bool:
        """A step, counted from 0, is done. Returns whether the build shall go on."""
        self._say(phase, step + 1)
        return not self._cancelled()

    def _say(self, phase: str, done: int) -> None:
        if phase != next(iter(self._steps), None):
            return
        text = f"{phase}: {100 * done // max(self._steps[phase], 1)}%"
        if text != self._said:
            self._said = text
            self._report(text)


def make_monitor(api: Any, report: Report, cancelled: Callable[[], bool]) -> Any:
    """Return TensorRT's kind of monitor, for `IBuilderConfig.progress_monitor`."""
    phases = Phases(report, cancelled)

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()
