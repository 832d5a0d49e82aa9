"""Drives a fresh engine through a take, operation by operation in their live order.

Frames are compared with the hashes of the live ones. With dropped inputs filled in, other steps or another size the
order of operations stays, and a full engine ticks until it has room. Independent of the command line and of writers.
"""

from __future__ import annotations

import bisect
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ModelError
from pipelines.core.preparation import PartForm, Preparation
from pipelines.core.types import Frame, Picture

from .inputs import fingerprint, load_input
from .reader import FrameKey, Take
from .records import Changed, Generated, Opened, Pushed, Sourced, StoredInput, Swapped, TakeRecord, Ticked, form_of

_NANOSECONDS = Fraction(1, 1_000_000_000)
_DEVICE_WAIT_S = 10.0  # for a picture that the device has not finished
_MAX_IDLE_TICKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """fill_drops: push every input. steps: replaces the take's; 0: the take's. resized: the engine's size differs from
    the take's. other_backend: its backend does."""

    fill_drops: bool = False
    steps: int = 0
    resized: bool = False
    other_backend: bool = False

    @property
    def same(self) -> bool:
        """Whether the frames should equal the live ones."""
        return not (self.fill_drops or self.steps or self.resized)

    @property
    def follows_plans(self) -> bool:
        """Whether parts change to the take's plans where they did live, and to no others."""
        return self.same and not self.other_backend


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayedFrame:
    """image: [H, W, 3] uint8 RGB. time_ns: when its source was captured or it was requested, on the take's clock."""

    image: Picture
    time_ns: int


@dataclass(slots=True, kw_only=True)
class ReplayCounts:
    """identical, different: compared with the live frames. unknown: no live frame to compare with (not delivered, or
    its line was lost). inputs: with different pixels than live. verdicts: inputs on which the similarity filter decided
    differently. batches: ticks whose batch was shared with other sessions live. cautions: about plans."""

    identical: int = 0
    different: int = 0
    unknown: int = 0
    inputs: int = 0
    verdicts: int = 0
    batches: int = 0
    cautions: set[str] = field(default_factory=set)


class Replay:
    """One pass over a take."""

    def __init__(self, take: Take, engine: Engine, options: ReplayOptions) -> None:
        """Raises ModelError, with the remedy, if a plan that the take ran with is not stored."""
        self.counts = ReplayCounts()
        swaps = [record for record in take.records if isinstance(record, Swapped)]
        self._holds = options.follows_plans and bool(swaps)
        if self._holds:
            check_plans(take.opened, [form_of(record) for record in swaps], engine.preparation)
        self._take, self._engine, self._options = take, engine, options
        self._stream: Stream | None = None
        self._opened = -1
        self._ready: deque[ReplayedFrame] = deque()
        self._asked: deque[int] = deque()  # request times of prompt-only frames, from number `_first_asked` on
        self._first_asked = 0
        self._compared: set[FrameKey] = set()
        self._by_seq = {stored.seq: index for index, stored in enumerate(take.inputs) if stored.seq is not None}
        self._next_seqs = _next_seqs(take.inputs)
        self._next = 0  # the first input not offered yet (with fill_drops)
        self._prompt_only = False

    def frames(self) -> Generator[ReplayedFrame]:
        """All frames, in order. Raises InputError if the take and the engine do not match."""
        try:
            for record in self._take.records:
                self._play(record)
                while self._ready:
                    yield self._ready.popleft()
            if self._stream is not None:
                self._fill(sys.maxsize)  # the last inputs may never have been offered live
            self._finish_stream()
            yield from self._ready
        finally:
            if self._stream is not None:
                self._stream.close()

    # ---- operations ----

    def _play(self, record: TakeRecord) -> None:
        match record:
            case Opened():
                self._open(record)
            case Changed():
                self._fill(record.after)
                self._apply(record)
            case Pushed():
                self._pushed(record)
            case Generated():
                self._offer(lambda: self._running.generate(record.frames))
                self._asked.extend([record.at_ns] * record.frames)
            case Ticked():
                self._tick(record)
            case Swapped() if self._holds:
                self._swap(record)
            case Sourced():
                self._source(record)

    def _open(self, record: Opened) -> None:
        if self._stream is not None:
            self._finish_stream()
            self._stream.close()
        self._asked.clear()
        self._first_asked = 0
        self._opened += 1
        self._prompt_only = record.prompt_only
        self._skip(record.after)
        if self._holds:  # the records that follow name what runs
            self._engine.preparation.hold()
        self._stream = self._engine.open(control=self._control(record.controls))

    def _apply(self, record: Changed) -> None:
        self._running.apply(self._control(record.controls))

    def _pushed(self, record: Pushed) -> None:
        if self._options.fill_drops:
            self._fill(record.seq)
        elif record.outcome != "refused":
            skipped = self._push(self._take.inputs[self._by_seq[record.seq]])
            self.counts.verdicts += skipped != (record.outcome == "skipped")

    def _tick(self, record: Ticked) -> None:
        before = self._engine.log.last_tick
        self._engine.tick()
        now = self._engine.log.last_tick
        if now is not before and now is not None and record.batch:
            self.counts.batches += len(now.rows) != record.batch
        self._pull()

    def _swap(self, record: Swapped) -> None:
        if caution := self._engine.preparation.take_over(form_of(record)):
            self.counts.cautions.add(caution)

    def _source(self, record: Sourced) -> None:
        if record.prompt_only:
            self._fill(record.after)
        else:
            self._skip(record.after)
        self._prompt_only = record.prompt_only

    # ---- inputs ----

    def _fill(self, seq: int) -> None:
        """With fill_drops: push every input up to number `seq`."""
        if not self._options.fill_drops or self._prompt_only:
            return
        end = self._end(seq)
        while self._next < end:
            stored = self._take.inputs[self._next]
            self._next += 1
            try:
                self._push(stored)
            except InputError:
                if stored.seq is not None:
                    raise
                self.counts.inputs += 1  # it was never decoded live and may not be a picture

    def _skip(self, seq: int) -> None:
        """With fill_drops: skip the inputs up to number `seq`, which were offered to no stream."""
        self._next = max(self._next, self._end(seq))

    def _end(self, seq: int) -> int:
        """The index after input `seq`; undecoded drops before it are included."""
        return bisect.bisect_right(self._next_seqs, seq)

    def _push(self, stored: StoredInput) -> bool:
        """Push one input; returns whether the similarity filter skipped it."""
        info = self._running.info
        image, same = load_input(self._take.folder, stored, info.width, info.height)
        self.counts.inputs += not same
        frame = Frame(
            image=image,
            pts=stored.captured_ns,
            time_base=_NANOSECONDS,
            seq=stored.seq if stored.seq is not None else self._next,
            captured_ns=stored.captured_ns,
        )
        before = self._running.accounting.skipped
        self._offer(lambda: self._running.push(frame))
        return self._running.accounting.skipped > before

    # ---- the engine ----

    @property
    def _running(self) -> Stream:
        assert self._stream is not None, "a take begins with an opened stream"
        return self._stream

    def _control(self, values: Mapping[str, object]) -> Control:
        steps = {"steps": self._options.steps} if self._options.steps and "steps" in values else {}
        return Control.of({**values, **steps})

    def _offer(self, offer: Callable[[], bool]) -> None:
        """Retry until accepted: an unchanged replay only waits for the device, otherwise the engine ticks."""
        deadline_s, idle = time.monotonic() + _DEVICE_WAIT_S, 0
        while not offer():
            if self._options.same:
                if time.monotonic() > deadline_s:
                    raise InputError(
                        "The replay has diverged from the take: the engine is full where it had room live.",
                        "Render with --fill-drops, which does not need room at the same moments.",
                    )
                time.sleep(0.0005)
            else:
                self._engine.tick()
                idle += 1
                assert idle < _MAX_IDLE_TICKS, "the engine never accepts the frame"
            self._pull()

    def _pull(self) -> None:
        for frame in self._running.pull():
            self._take_frame(frame)

    def _finish_stream(self) -> None:
        """End a stream. An unchanged replay omits what was in flight then, as the take does; otherwise flush it."""
        if not self._options.same:
            for frame in self._running.flush():
                self._take_frame(frame)
            return
        self._pull()
        deadline_s = time.monotonic() + _DEVICE_WAIT_S
        while self._missing() and self._running.info.device != "cpu" and time.monotonic() < deadline_s:
            time.sleep(0.001)
            self._pull()

    def _missing(self) -> bool:
        return any(key[0] == self._opened and key not in self._compared for key in self._take.hashes)

    def _time_ns(self, frame: Frame) -> int:
        """When its source was captured, or it was asked for; between two such times where a frame stage made it."""
        at_s = frame.pts * frame.time_base
        if frame.source_seq is not None:
            return round(at_s / _NANOSECONDS)
        number = at_s * self._running.info.generate_rate
        while self._first_asked < int(number) and len(self._asked) > 1:
            self._asked.popleft()
            self._first_asked += 1
        before, after = self._asked[0], self._asked[min(1, len(self._asked) - 1)]
        return round(before + (number - self._first_asked) * (after - before))

    def _take_frame(self, frame: Frame) -> None:
        time_ns = self._time_ns(frame)
        key = (self._opened, frame.seq)
        if self._options.same:
            if key in self._take.lost:
                return
            self._compare(key, frame.image)
        self._ready.append(ReplayedFrame(image=frame.image, time_ns=time_ns))

    def _compare(self, key: FrameKey, image: Picture) -> None:
        live = self._take.hashes.get(key)
        self._compared.add(key)
        if live is None:
            self.counts.unknown += 1
        elif live == fingerprint(image):
            self.counts.identical += 1
        else:
            self.counts.different += 1


def check_plans(opened: Opened, forms: Sequence[PartForm], preparation: Preparation) -> None:
    """Raise ModelError if plans that a take ran with are not stored."""
    if missing := preparation.missing(forms):
        plans = ", ".join(f"{form.plan} ({form.part})" for form in missing)
        model, backend = opened.machine.get("model"), opened.machine.get("backend")
        raise ModelError(
            f"The take ran with plans that are not stored here: {plans}.",
            f"Copy them from the machine that recorded it, or build them: `zoetrope plans build {model} --backend "
            f"{backend}`. With --backend eager it is rendered without; frames differ then.",
        )


def _next_seqs(inputs: Sequence[StoredInput]) -> list[int]:
    """The seq of each input, or of the next one that has any. Non-decreasing."""
    numbers: list[int] = []
    following = 2**63
    for stored in reversed(inputs):
        following = stored.seq if stored.seq is not None else following
        numbers.append(following)
    numbers.reverse()
    return numbers
