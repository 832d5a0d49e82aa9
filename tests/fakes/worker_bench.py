"""The worker's loop in the test's own process, round by round, and the front's end of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from app.worker.messages import (
    ChangeControl,
    CloseSession,
    FromWorker,
    InputPosted,
    OpenSession,
    OutputReady,
    OutputRelease,
    SessionStats,
    ToWorker,
)
from app.worker.process import Worker
from app.worker.shared_frames import FrameBuffers, InputMailbox
from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.types import Frame, Picture


@dataclass
class Front:
    """The front's end: a mailbox, output buffers and what the worker said."""

    send: Callable[[ToWorker], None]
    receive: Callable[[], list[FromWorker]]
    name: str
    inputs: InputMailbox
    outputs: FrameBuffers
    heard: list[FromWorker] = field(default_factory=list)
    sources: list[int | None] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def post(self, seq: int) -> None:
        width, height = self.inputs.buffers.spec.width, self.inputs.buffers.spec.height
        image = np.full((height, width, 3), seq, np.uint8)
        self.inputs.post(Frame(image=image, pts=seq, time_base=Fraction(1, 30), seq=seq, captured_ns=seq))
        self.send(InputPosted(session=self.name))

    def apply(self, control: Control) -> None:
        self.send(ChangeControl(session=self.name, control=control))

    def collect(self, *, release: bool = True) -> None:
        for message in self.receive():
            self.heard.append(message)
            if isinstance(message, OutputReady):
                frame = self.outputs.read(message.index, message.generation)
                assert frame is not None
                self.sources.append(frame.source_seq)
                self.pictures.append(frame.image)
                if release:
                    self.send(OutputRelease(session=self.name, index=message.index, generation=message.generation))

    def of(self, kind: type) -> list[FromWorker]:
        return [message for message in self.heard if isinstance(message, kind)]


class Bench:
    """A worker whose rounds the test runs itself."""

    def __init__(self, engine: Engine, side_px: int = 2, machine: Mapping[str, object] | None = None) -> None:
        self._side_px = side_px
        self.pipe, theirs = multiprocessing.Pipe()
        self.worker = Worker(theirs, engine, machine)
        self.fronts: list[Front] = []
        self._theirs = theirs

    def front(
        self, name: str = "a", *, prompt_only: bool = False, outputs: int = 4, control: Control | None = None
    ) -> Front:
        front = Front(
            self.pipe.send,
            self.receive,
            name,
            InputMailbox.create(width=self._side_px, height=self._side_px),
            FrameBuffers.create(count=outputs, width=self._side_px, height=self._side_px),
        )
        self.fronts.append(front)
        self.pipe.send(
            OpenSession(
                session=name,
                inputs=front.inputs.buffers.spec,
                outputs=front.outputs.spec,
                control=control or Control(),
                prompt_only=prompt_only,
            )
        )
        return front

    def receive(self) -> list[FromWorker]:
        messages: list[FromWorker] = []
        while self.pipe.poll(0):
            messages.append(self.pipe.recv())
        return messages

    def stats(self, name: str = "a") -> SessionStats:
        return self.worker._sessions[name].stats(0.0)

    def close(self) -> None:
        for name in tuple(self.worker._sessions):
            self.pipe.send(CloseSession(session=name))
        self.worker.run_once()
        for front in self.fronts:
            front.inputs.buffers.close()
            front.outputs.close()
        self.pipe.close()
        self._theirs.close()
