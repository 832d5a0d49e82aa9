"""Shared memory for frames: a fixed number of picture buffers with generations, written by one process, read by one.

The front creates and unlinks every block, with all its pages; the worker attaches. Each buffer's header carries the
generation of its picture, so that a reader with (index, generation) never mistakes a newer, older or half-written
picture for the one it expects: `read` checks the generation before and after copying. `InputMailbox` builds a one-slot
mailbox for live input on top: the newest wins. Independent of engines and messages.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import numpy.typing as npt

from pipelines.core.errors import WorkerError
from pipelines.core.types import Frame

_HEADER_WORDS = 8  # int64: generation, seq, source_seq, captured_ns, pts, time base numerator and denominator, spare
_NONE = -1  # encodes None in source_seq and captured_ns
_FILES = "/dev/shm"  # where Linux keeps shared memory
_MAILBOX_BUFFERS = 3  # one being read, one being written, one complete: the writer never blocks


class SharedMemoryError(WorkerError):
    """There is not enough shared memory for a session's pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSpec:
    """What a second process needs to attach: the name and the layout (pictures: height x width x 3 uint8)."""

    name: str
    count: int
    width: int
    height: int


class FrameBuffers:
    """`count` buffers of one picture each. Row 0 of the headers belongs to `InputMailbox`."""

    def __init__(self, spec: BufferSpec, memory: SharedMemory, *, owner: bool) -> None:
        self.spec = spec
        self._memory = memory
        self._owner = owner
        header_bytes = (spec.count + 1) * _HEADER_WORDS * 8
        self._headers: npt.NDArray[np.int64] = np.ndarray((spec.count + 1, _HEADER_WORDS), np.int64, buffer=memory.buf)
        self._pictures: npt.NDArray[np.uint8] = np.ndarray(
            (spec.count, spec.height, spec.width, 3), np.uint8, buffer=memory.buf, offset=header_bytes
        )

    @classmethod
    def create(cls, *, count: int, width: int, height: int) -> FrameBuffers:
        """Create a block of zeros: generation 0 means "nothing yet". Raises SharedMemoryError."""
        size = (count + 1) * _HEADER_WORDS * 8 + count * width * height * 3
        memory = _taken(size)
        spec = BufferSpec(name=memory.name, count=count, width=width, height=height)
        return cls(spec, memory, owner=True)

    @classmethod
    def attach(cls, spec: BufferSpec) -> FrameBuffers:
        """Attach from the other process, which must share the owner's resource tracker (be spawned by the owner)."""
        return cls(spec, SharedMemory(name=spec.name), owner=False)

    def write(self, index: int, generation: int, frame: Frame) -> None:
        """Write `frame` to buffer `index` as `generation` (> 0 and never used before)."""
        assert frame.image.shape == self._pictures.shape[1:], f"{frame.image.shape} into {self.spec}"
        header = self._headers[index + 1]
        header[0] = 0  # invalidates the old picture for a concurrent reader
        self._pictures[index] = frame.image
        header[1:7] = (
            frame.seq,
            _NONE if frame.source_seq is None else frame.source_seq,
            _NONE if frame.captured_ns is None else frame.captured_ns,
            frame.pts,
            frame.time_base.numerator,
            frame.time_base.denominator,
        )
        header[0] = generation

    def read(self, index: int, generation: int) -> Frame | None:
        """Return a copy of buffer `index`; None if it does not hold `generation` before and after copying."""
        header = self._headers[index + 1]
        if generation <= 0 or header[0] != generation:
            return None
        image = self._pictures[index].copy()
        seq, source_seq, captured_ns, pts, numerator, denominator = (int(word) for word in header[1:7])
        if header[0] != generation:
            return None
        return Frame(
            image=image,
            pts=pts,
            time_base=Fraction(numerator, denominator),
            seq=seq,
            source_seq=None if source_seq == _NONE else source_seq,
            captured_ns=None if captured_ns == _NONE else captured_ns,
        )

    @property
    def newest(self) -> int:
        """Generation of the newest picture in a mailbox; 0 before the first."""
        return int(self._headers[0, 0])

    @newest.setter
    def newest(self, generation: int) -> None:
        self._headers[0, 0] = generation

    def close(self) -> None:
        """Detach; the owner also unlinks the block. May be called twice."""
        if self._headers.size == 0:
            return
        self._headers = np.empty((0, _HEADER_WORDS), np.int64)  # release the views, or the mapping cannot be closed
        self._pictures = np.empty((0, 0, 0, 3), np.uint8)
        self._memory.close()
        if self._owner:
            self._memory.unlink()


def _taken(size: int) -> SharedMemory:
    """Shared memory of `size` bytes whose pages exist: without that, writing a picture later would end the process by
    a signal where the system has too few. Raises SharedMemoryError."""
    memory: SharedMemory | None = None
    try:
        memory = SharedMemory(create=True, size=size)
        if sys.platform == "linux":  # elsewhere it is not a file system of limited size
            descriptor = os.open(f"{_FILES}/{memory.name}", os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
    except OSError as error:
        if memory is not None:
            memory.close()
            memory.unlink()
        raise SharedMemoryError(
            f"There is not enough shared memory for another session: {size / 2**20:.0f} MiB more are needed in "
            f"{_FILES} ({error.strerror}).",
            "Close other sessions, give a container more (docker run --shm-size=1g), or start with a smaller --size or "
            "--max-sessions.",
        ) from error
    return memory


class InputMailbox:
    """A one-slot mailbox of frames in shared memory: posting never blocks, taking returns the newest.

    Buffers are written in turn, so a picture that is being read is overwritten only if two more arrive while it is
    copied; the generation check then makes the reader take the newer one.
    """

    def __init__(self, buffers: FrameBuffers) -> None:
        self.buffers = buffers

    @classmethod
    def create(cls, *, width: int, height: int) -> InputMailbox:
        return cls(FrameBuffers.create(count=_MAILBOX_BUFFERS, width=width, height=height))

    def post(self, frame: Frame) -> None:
        """Writer: make `frame` the newest."""
        generation = self.buffers.newest + 1
        self.buffers.write(generation % self.buffers.spec.count, generation, frame)
        self.buffers.newest = generation

    def take(self, after: int) -> tuple[int, Frame] | None:
        """Reader: return the newest generation and frame if newer than generation `after`."""
        for _ in range(_MAILBOX_BUFFERS):
            generation = self.buffers.newest
            if generation <= after:
                return None
            frame = self.buffers.read(generation % self.buffers.spec.count, generation)
            if frame is not None:
                return generation, frame
        return None  # the writer laps the reader; the next call finds it


class OutputPool:
    """The worker's free output buffers: taken for a frame, released by a message of the front."""

    def __init__(self, buffers: FrameBuffers) -> None:
        self.buffers = buffers
        self._free: deque[int] = deque(range(buffers.spec.count))
        self._in_use: dict[int, int] = {}
        self._generation = 0

    def put(self, frame: Frame) -> tuple[int, int] | None:
        """Write `frame` to a free buffer. Returns (index, generation), or None while no buffer is free."""
        if not self._free:
            return None
        index = self._free.popleft()
        self._generation += 1
        self._in_use[index] = self._generation
        self.buffers.write(index, self._generation, frame)
        return index, self._generation

    def release(self, index: int, generation: int) -> None:
        """Free a buffer that the reader has copied. Ignored unless it holds `generation`."""
        if self._in_use.get(index) == generation:
            del self._in_use[index]
            self._free.append(index)


def session_buffers(*, width: int, height: int, outputs: int) -> tuple[InputMailbox, FrameBuffers]:
    """A session's mailbox and its output buffers: both or none. Raises SharedMemoryError."""
    mailbox = InputMailbox.create(width=width, height=height)
    try:
        return mailbox, FrameBuffers.create(count=outputs, width=width, height=height)
    except SharedMemoryError:
        mailbox.buffers.close()
        raise
