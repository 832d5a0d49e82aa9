"""The server's OSC and MIDI inputs: opened at startup, they control the most recently opened session.

Owns the open controllers. Independent of their protocols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from app.outputs.output import Attachment
from app.session.table import SessionTable
from pipelines.core.errors import InputError

from .mapping import ControlMapping
from .midi import MidiInput, MidiOptions
from .osc import OscInput, OscOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerOptions:
    """osc_port: UDP on 127.0.0.1, 0 for any free one; None: no OSC. midi_port: "" for the first; None: no MIDI.

    Raises InputError for an invalid port, and for MIDI without a MIDI mapping.
    """

    osc_port: int | None = None
    midi_port: str | None = None
    mappings: Sequence[ControlMapping] = ()

    def __post_init__(self) -> None:
        if self.osc_port is not None:
            self.osc()
        if self.midi_port is not None:
            self.midi()

    def osc(self) -> OscOptions:
        assert self.osc_port is not None
        return OscOptions(port=self.osc_port, mappings=self.mappings)

    def midi(self) -> MidiOptions:
        assert self.midi_port is not None
        return MidiOptions(port=self.midi_port, mappings=self.mappings)


class NewestSession:
    """Changes the controls of the most recently opened session that is not over."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table

    def apply(self, values: Mapping[str, object]) -> None:
        """Like Session.apply; raises InputError without a session."""
        running = [session for session in self._table.sessions if not session.over]
        if not running:
            raise InputError("No session is running.", "Press Start on the page, or open one.")
        max(running, key=lambda session: session.created_s).apply(values)


@contextmanager
def controllers(options: ControllerOptions, table: SessionTable) -> Iterator[Sequence[Attachment]]:
    """The controllers, open until the end of the block. Raises InputError for a port that is in use or missing."""
    newest = NewestSession(table)
    opened: list[Attachment] = []
    with ExitStack() as stack:
        if options.osc_port is not None:
            opened.append(OscInput(options.osc(), newest.apply))
            stack.callback(opened[-1].stop)
        if options.midi_port is not None:
            opened.append(MidiInput(options.midi(), newest.apply))
            stack.callback(opened[-1].stop)
        yield opened
