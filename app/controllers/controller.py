"""Applies controller messages to a session: mapped, smoothed, coalesced, at most 30 times a second.

One pending value is kept per control: newest wins. Owns a thread. Independent of OSC and MIDI; the session is a
function that applies changes by name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from app.outputs.output import OutputPhase, OutputReading
from pipelines.core.control_table import CONTROLS
from pipelines.core.errors import ZoetropeError

from .mapping import ControlMapping, by_address, live_control, plain_value
from .smoothing import Smoother

Apply = Callable[[Mapping[str, object]], None]
"""Changes controls by name, as Session.apply does; raises ZoetropeError if refused."""

_PERIOD_S = 1 / 30


class Controller:
    """One source of control messages. Its methods are thread-safe and do not block."""

    def __init__(self, apply: Apply, mappings: Sequence[ControlMapping], *, name: str) -> None:
        self._apply = apply
        self._mappings = by_address(mappings)
        self._changed = threading.Condition()
        self._pending: dict[str, object] = {}
        self._moving: dict[str, Smoother] = {}  # by control
        self._smoothers: dict[ControlMapping, Smoother] = {}
        self._applied: dict[str, object] = {}
        self._stopped = False
        self.received = 0
        self.refused = 0
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def move(self, address: str, position: object) -> bool:
        """A controller moved to `position` (0 to 1; text for text controls). Returns False without a mapping."""
        mappings = self._mappings.get(address, ())
        for mapping in mappings:
            try:
                target = mapping.target(position)
            except ZoetropeError as error:
                self._refuse(error)
                continue
            if isinstance(target, float):
                self._aim(mapping, target)
            else:
                self._put(mapping.control, target)
        return bool(mappings)

    def set(self, control: str, value: object) -> None:
        """Set a control in its own unit. Invalid values are refused, counted, and reported in `trouble`."""
        try:
            self._put(control, plain_value(live_control(control), value))
        except ZoetropeError as error:
            self._refuse(error)

    def stop(self) -> None:
        """Stop applying changes. Idempotent."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _aim(self, mapping: ControlMapping, target: float) -> None:
        with self._changed:
            smoother = self._smoothers.setdefault(mapping, Smoother(mapping.smoothing_ms))
            smoother.aim(target, time.monotonic())
            self._pending.pop(mapping.control, None)
            self._moving[mapping.control] = smoother
            self._applied.pop(mapping.control, None)  # the page may have changed it since
            self.received += 1
            self._changed.notify_all()

    def reading(self, kind: str, text: str, *, unknown: int) -> OutputReading:
        """The status of this controller. unknown: messages without a mapping."""
        with self._changed:
            trouble = f"; last refused: {self.trouble}" if self.trouble else ""
            phase = OutputPhase.STOPPED if self._stopped else OutputPhase.RUNNING
            return OutputReading(
                kind=kind, phase=phase, done=self.received, dropped=self.refused + unknown, text=text + trouble
            )

    def _put(self, control: str, value: object) -> None:
        with self._changed:
            self._moving.pop(control, None)
            self._pending[control] = value
            self.received += 1
            self._changed.notify_all()

    def _refuse(self, error: ZoetropeError) -> None:
        with self._changed:
            self.refused += 1
            self.trouble = str(error)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._pending or self._moving)
                if self._stopped:
                    return
                changes = self._due(time.monotonic())
            if changes:
                try:
                    self._apply(changes)
                except ZoetropeError as error:
                    self._refuse(error)
            time.sleep(_PERIOD_S)

    def _due(self, now_s: float) -> dict[str, object]:
        """The changes since the last call. The caller holds the condition."""
        changes = self._pending
        self._pending = {}
        for control, smoother in list(self._moving.items()):
            value: object = smoother.at(now_s)
            if CONTROLS[control].kind == "int":
                value = round(smoother.at(now_s))
            if self._applied.get(control) != value:
                changes[control] = value
            if smoother.settled:
                del self._moving[control]
        self._applied |= changes
        return changes
