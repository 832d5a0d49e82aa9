"""Owns what the worker says of its engine's preparation: to takes, which part runs with which plan; to the front, how
far it is. Independent of the pipe.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.core.contracts import Engine
from pipelines.core.tick_log import TickRecord

from .messages import WorkerPreparation
from .session import WorkerSession


class PreparationWatch:
    """Compares an engine's preparation with what was last said of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._forms = engine.preparation.forms
        self._status = WorkerPreparation()

    def record(self, sessions: Iterable[WorkerSession], before: TickRecord | None) -> None:
        """Write into every take what the tick that has just been run found in another form. before: the tick before."""
        forms = self._engine.preparation.forms
        if forms is self._forms:
            return
        changed, self._forms = [form for form in forms if form not in self._forms], forms
        last = self._engine.log.last_tick
        tick = self._next_tick if last is before or last is None else last.tick  # without slots no tick is counted
        for session in sessions:
            if session.recorder is not None:
                session.recorder.swapped(changed, tick)

    def record_opening(self, session: WorkerSession) -> None:
        """Write into a take that has just begun what all parts run with."""
        if session.recorder is not None:
            session.recorder.swapped(self._engine.preparation.forms, self._next_tick)

    def report(self) -> WorkerPreparation | None:
        """Return what the front should know, if it has changed."""
        status = WorkerPreparation(status=self._engine.preparation.status)
        if status == self._status:
            return None
        self._status = status
        return status

    @property
    def _next_tick(self) -> int:
        last = self._engine.log.last_tick
        return 0 if last is None else last.tick + 1
