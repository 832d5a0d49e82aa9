"""The worker's end of a take: collects records into batches, bounded by time and number.

Runs on the worker's only thread; the cost is an append. Independent of pipes and files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from pipelines.core.contracts import Stream
from pipelines.core.control_table import CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.preparation import PartForm
from pipelines.core.types import StreamInfo

from .records import (
    Changed,
    Generated,
    Lost,
    Opened,
    Outcome,
    Pushed,
    Sourced,
    Stopped,
    TakeRecord,
    Ticked,
    plain_change,
    plain_controls,
    swapped_to,
)

_BATCH_RECORDS = 64
_BATCH_NS = 100_000_000


class Recorder:
    """Records of one session. first_seq: number of the first input posted to this worker's mailbox."""

    def __init__(self, first_seq: int) -> None:
        self._first_seq = first_seq
        self._records: list[TakeRecord] = []
        self._since_ns = 0
        self._refused: int | None = None

    def after(self, posted: int) -> int:
        """The number of the newest of `posted` inputs."""
        return self._first_seq + posted - 1

    def opened(
        self, info: StreamInfo, control: Control, machine: Mapping[str, object], *, prompt_only: bool, posted: int
    ) -> None:
        """A new stream was opened."""
        self._add(
            Opened(
                machine=machine,
                controls=plain_change(control),
                width=info.width,
                height=info.height,
                prompt_only=prompt_only,
                after=self.after(posted),
                at_ns=time.monotonic_ns(),
            )
        )

    def changed(self, control: Control, tick: int, posted: int) -> None:
        """Controls were applied."""
        self._add(Changed(controls=plain_change(control), tick=tick, after=self.after(posted)))

    def pushed(self, seq: int, outcome: Outcome) -> None:
        """An input was offered."""
        if outcome == "refused" and seq == self._refused:
            return
        self._refused = seq if outcome == "refused" else None
        self._add(Pushed(seq=seq, outcome=outcome))

    def generated(self, frames: int, now_ns: int) -> None:
        """Prompt-only frames were accepted."""
        self._add(Generated(frames=frames, at_ns=now_ns))

    def ticked(self, tick: int, batch: int) -> None:
        """The engine ticked."""
        self._add(Ticked(tick=tick, batch=batch))

    def swapped(self, forms: Iterable[PartForm], tick: int) -> None:
        """Parts run with these forms from `tick` on."""
        for form in forms:
            self._add(swapped_to(form, tick))

    def sourced(self, posted: int, *, prompt_only: bool) -> None:
        """The source was switched."""
        self._add(Sourced(prompt_only=prompt_only, after=self.after(posted)))

    def lost(self, seq: int) -> None:
        """A finished frame was dropped."""
        self._add(Lost(seq=seq))

    def stopped(self, reason: str) -> None:
        """Recording ended."""
        self._add(Stopped(reason=reason))

    def due(self, now_ns: int) -> bool:
        """Whether a batch is full or old enough to send."""
        return bool(self._records) and (len(self._records) >= _BATCH_RECORDS or now_ns - self._since_ns >= _BATCH_NS)

    def take_batch(self) -> tuple[TakeRecord, ...]:
        """The records to send; may be empty."""
        batch = tuple(self._records)
        self._records.clear()
        return batch

    def _add(self, record: TakeRecord) -> None:
        if not self._records:
            self._since_ns = time.monotonic_ns()
        self._records.append(record)


def complete_control(stream: Stream) -> Control:
    """All controls of a stream, to open a new one with; without the engine's controls."""
    values = {
        name: value
        for name, value in stream.controls.values.items()
        if CONTROLS[name].propagation is not Propagation.REOPEN
        and CONTROLS[name].scope == "stream"
        and not CONTROLS[name].momentary
    }
    return Control.of(plain_controls(values))
