"""MIDI input: control changes and notes of a port change the controls they are mapped to.

Optional (mido and one of its backends), off by default. Owns the port; messages arrive on the backend's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.outputs.output import OutputReading
from pipelines.core.errors import InputError

from .controller import Apply, Controller
from .mapping import ControlMapping

_MAX = 127
_REMEDY = "pip install 'zoetrope[midi]'; on Linux the ALSA sequencer is required (/dev/snd/seq)."


class MidiPort(Protocol):
    """The part of a mido port that is used. name: as the system shows it."""

    name: str

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MidiOptions:
    """port: an input's name, "" for the first one. backend: a mido backend module, "" for mido's choice."""

    mappings: Sequence[ControlMapping]
    port: str = ""
    backend: str = ""

    def __post_init__(self) -> None:
        if not any(not mapping.address.startswith("/") for mapping in self.mappings):
            raise InputError("No mapping has a MIDI address.", "Add one such as cc:1:74 (channel 1, controller 74).")


def midi_ports(backend: str = "") -> tuple[str, ...]:
    """The system's inputs. Raises InputError without mido, its backend, or MIDI."""
    return tuple(str(name) for name in _call(_backend(backend).get_input_names))


class MidiInput:
    """An open input port. Raises InputError without mido, its backend, MIDI, or that port."""

    def __init__(self, options: MidiOptions, apply: Apply) -> None:
        backend = _backend(options.backend)
        names = midi_ports(options.backend)
        name = options.port or (names[0] if names else "")
        if name not in names:
            missing = f"no MIDI input named {options.port!r}" if options.port else "no MIDI input"
            raise InputError(f"There is {missing}.", f"Available: {', '.join(names) or 'none; connect one'}.")
        self._unknown = 0
        self._stopped = False
        self._controller = Controller(apply, options.mappings, name="midi-controls")
        try:
            self._port: MidiPort = _call(lambda: backend.open_input(name, callback=self._on_message))
        except InputError:
            self._controller.stop()
            raise
        self._name = name

    def read(self) -> OutputReading:
        return self._controller.reading("midi", f"MIDI from {self._name}", unknown=self._unknown)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._port.close()
        self._controller.stop()

    def _on_message(self, message: Any) -> None:
        """message: a mido message; called on the backend's thread."""
        match message.type:
            case "control_change":
                kind, number, value = "cc", message.control, message.value
            case "note_on":
                kind, number, value = "note", message.note, message.velocity
            case "note_off":
                kind, number, value = "note", message.note, 0
            case _:
                return  # clock, sysex etc. are not controls
        position = float(value > 0) if kind == "note" else value / _MAX
        on_channel = self._controller.move(f"{kind}:{message.channel + 1}:{number}", position)
        on_any = self._controller.move(f"{kind}:*:{number}", position)
        if not on_channel and not on_any:
            self._unknown += 1


def _backend(name: str) -> Any:
    try:
        from mido import Backend  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError("MIDI needs the package mido.", _REMEDY) from error
    return Backend(name or None)


def _call(function: Any) -> Any:
    """Backends are imported on first use, and report missing MIDI with different exceptions."""
    try:
        return function()
    except ImportError as error:
        raise InputError(f"mido's backend is not installed: {error}.", _REMEDY) from error
    except (SystemError, OSError) as error:
        raise InputError(f"This system has no usable MIDI: {error}.", _REMEDY) from error
