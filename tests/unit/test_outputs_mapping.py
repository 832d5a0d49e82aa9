"""Mappings, smoothing, OSC and MIDI: what a controller sends changes the intended control, or gives a clear error."""

from __future__ import annotations

import importlib
import json
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import mido
import pytest
from pythonosc.udp_client import SimpleUDPClient

from app.controllers.controller import Controller
from app.controllers.mapping import ControlMapping, load_mappings
from app.controllers.midi import MidiInput, MidiOptions, midi_ports
from app.controllers.osc import OscInput, OscOptions
from app.controllers.smoothing import Smoother
from app.outputs.output import OutputPhase
from pipelines.core.control_table import CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError
from pipelines.core.prompts import WeightedPrompt
from tests.fakes import midi_backend

BLEND = (WeightedPrompt(text="a cat", weight=2.0), WeightedPrompt(text="a robot"))
BACKEND = "tests.fakes.midi_backend"


class Applied:
    """Replaces a session: validates changes likewise, and records them."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []

    def __call__(self, values: Mapping[str, object]) -> None:
        self.calls.append(dict(Control.of(values).changes()))

    @property
    def now(self) -> dict[str, object]:
        return {name: value for call in self.calls for name, value in call.items()}


def soon(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture
def applied() -> Applied:
    return Applied()


def one(control: str, address: str = "/x", **fields: float) -> ControlMapping:
    return ControlMapping(address=address, control=control, **fields)


@pytest.mark.parametrize(
    ("mapping", "position", "expected"),
    [
        (one("strength"), 0.0, 0.02),
        (one("strength"), 1, 1.0),
        (one("strength", low=0.2, high=0.6), 0.5, 0.4),
        (one("strength", low=0.6, high=0.2), 0.25, 0.5),  # turned round
        (one("strength", low=0.2, high=0.6), 7.0, 0.6),  # a controller that overshoots
        (one("seed_lock"), 0.49, False),
        (one("seed_lock"), 0.5, True),
        (one("seed_lock"), True, True),
        (one("guidance_mode"), 0.0, "none"),
        (one("guidance_mode"), 0.5, "self"),
        (one("guidance_mode"), 1.0, "onetime"),
        (one("steps"), 0.5, 4.5),  # rounded after smoothing
        (one("negative_prompt"), "blur", "blur"),
        (one("prompt"), "a cat:2 | a robot", BLEND),
    ],
)
def test_positions_become_values(mapping: ControlMapping, position: object, expected: object) -> None:
    target = mapping.target(position)
    assert target == pytest.approx(expected) if isinstance(expected, float) else target == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"address": "/x", "control": "brightness"}, "no control named 'brightness'"),
        ({"address": "/x", "control": "width"}, "width needs a new stream"),
        ({"address": "fader", "control": "strength"}, "'fader' is not a controller address"),
        ({"address": "/", "control": "strength"}, "'/' is not a controller address"),
        ({"address": "cc:17:3", "control": "strength"}, "not a controller address"),
        ({"address": "cc:1:128", "control": "strength"}, "not a controller address"),
        ({"address": "cc:1:3", "control": "prompt"}, "prompt is text, which MIDI cannot send"),
        ({"address": "/x", "control": "strength", "low": 0.0}, "low of strength cannot be 0.0. Give .* 0.02 to 1"),
        ({"address": "/x", "control": "strength", "high": math.nan}, "high of strength cannot be nan"),
        ({"address": "/x", "control": "seed_lock", "low": 0.0}, "seed_lock is of kind bool and has no range"),
        ({"address": "/x", "control": "strength", "smoothing_ms": -1.0}, "smoothing_ms of strength cannot be -1.0"),
        ({"address": "/x", "control": "guidance_mode", "smoothing_ms": 5.0}, "not a number and cannot be smoothed"),
    ],
)
def test_wrong_mappings_are_refused_with_the_remedy(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ControlError, match=message):
        ControlMapping(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", ["loud", math.nan, None, [1, 2]])
def test_a_number_is_needed_where_a_number_is_meant(position: object) -> None:
    with pytest.raises(ControlError, match="strength is mapped to a controller that sent"):
        one("strength").target(position)


def test_smoothing_is_the_exponential_however_often_it_is_asked() -> None:
    """Plain computation: target + (start - target) * exp(-t / smoothing)."""
    for times_s in ([0.1], [0.02, 0.05, 0.1], [k / 1000 for k in range(101)]):
        smoother = Smoother(200)
        smoother.aim(1.0, 0.0)
        assert smoother.at(0.0) == 1.0
        smoother.aim(3.0, 0.0)
        for now_s in times_s:
            expected = 3 + (1 - 3) * math.exp(-now_s / 0.2)
            assert smoother.at(now_s) == pytest.approx(expected, rel=1e-9)
        smoother.aim(0.0, 0.1)  # from where it stands
        start = 3 - 2 * math.exp(-0.5)
        assert smoother.at(0.15) == pytest.approx(start * math.exp(-0.25), rel=1e-9)


def test_smoothing_settles_exactly_and_never_overshoots() -> None:
    smoother = Smoother(100)
    smoother.aim(0.0, 0.0)
    smoother.aim(1.0, 0.0)
    values = [smoother.at(k / 50) for k in range(60)]
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert smoother.settled
    jumping = Smoother(0)
    jumping.aim(0.0, 0.0)
    jumping.aim(5.0, 0.0)
    assert (jumping.at(0.0), jumping.settled) == (5.0, True)


def test_a_file_of_mappings(tmp_path: Path) -> None:
    path = tmp_path / "mapping.json"
    rows = [
        {"address": "/1/fader1", "control": "strength", "low": 0.1, "high": 0.9, "smoothing_ms": 120},
        {"address": "cc:*:74", "control": "steps"},
    ]
    path.write_text(json.dumps({"version": 1, "mappings": rows}))
    first, second = load_mappings(path)
    assert first == one("strength", "/1/fader1", low=0.1, high=0.9, smoothing_ms=120)
    assert (second.address, second.control, second.low, second.smoothing_ms) == ("cc:*:74", "steps", None, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not a mapping file of version 1"),
        ('{"version": 2, "mappings": []}', "not a mapping file of version 1"),
        ('{"version": 1, "mappings": {}}', "must be a list"),
        ('{"version": 1, "mappings": [1]}', "mapping 1 is not an object"),
        ('{"version": 1, "mappings": [{"address": "/x"}]}', "mapping 1 needs an address and a control"),
        ('{"version": 1, "mappings": [{"address": "/x", "control": "steps", "speed": 1}]}', "unknown field 'speed'"),
        ('{"version": 1, "mappings": [{"address": "/x", "control": "steps", "low": "1"}]}', "low cannot be '1'"),
        ('{"version": 1, "mappings": [{"address": "/x", "control": "steps", "high": 99}]}', "mapping 1: high of steps"),
        (
            json.dumps({"version": 1, "mappings": [{"address": "/x", "control": "steps"}] * 2}),
            "maps /x to steps twice",
        ),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mapping.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_mappings(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json cannot be read: No such file"):
        load_mappings(tmp_path / "nothing.json")


def test_a_flood_of_messages_is_joined_and_the_newest_wins(applied: Applied) -> None:
    controller = Controller(applied, [one("strength", "/s"), one("steps", "/s")], name="test")
    for index in range(3001):
        controller.move("/s", index / 3000)
        controller.set("guidance_scale", index / 1000)
    soon(lambda: applied.now.get("guidance_scale") == 3.0 and applied.now.get("strength") == 1.0)
    controller.stop()
    assert applied.now["steps"] == 8
    assert len(applied.calls) < 100
    assert controller.received == 3 * 3001


def test_a_smoothed_control_keeps_moving_after_the_last_message(applied: Applied) -> None:
    controller = Controller(applied, [one("strength", "/s", low=0.1, high=0.9, smoothing_ms=60)], name="test")
    controller.move("/s", 0.0)
    soon(lambda: applied.now.get("strength") == pytest.approx(0.1))
    controller.move("/s", 1.0)
    soon(lambda: applied.now.get("strength") == pytest.approx(0.9))
    controller.stop()
    values = [float(str(call["strength"])) for call in applied.calls]
    assert values == sorted(values)
    assert len(values) > 4
    controller.stop()


def test_a_refused_change_is_counted_and_the_rest_goes_on(applied: Applied) -> None:
    controller = Controller(applied, [], name="test")
    controller.set("strength", 7)
    controller.set("model", "another")
    controller.set("steps", 3.0)
    soon(lambda: applied.now == {"steps": 3})
    controller.stop()
    assert controller.refused == 2
    assert "model needs a new stream" in controller.trouble


# ---- OSC ----


@pytest.fixture
def osc(applied: Applied) -> Iterator[OscInput]:
    server = OscInput(OscOptions(port=0, mappings=[one("strength", "/1/fader1", low=0.2, high=0.4)]), applied)
    yield server
    server.stop()


def test_osc_reaches_every_live_control_of_the_table(applied: Applied, osc: OscInput) -> None:
    client = SimpleUDPClient(osc.host, osc.port)
    expected: dict[str, object] = {}
    for spec in CONTROLS.values():
        if spec.propagation is Propagation.REOPEN:
            continue
        match spec.kind:
            case "float":
                sent, expected[spec.name] = spec.maximum, pytest.approx(spec.maximum)
            case "int":
                sent, expected[spec.name] = 5.0, 5  # many controllers know floats only
            case "bool":
                sent, expected[spec.name] = 1, True
            case "choice":
                sent, expected[spec.name] = spec.choices[-1], spec.choices[-1]
            case "text":
                sent, expected[spec.name] = "blur", "blur"
            case "prompts":
                sent, expected[spec.name] = (
                    "a cat:2 | a robot",
                    BLEND,
                )
        client.send_message(f"/zoetrope/{spec.name}", sent)
    soon(lambda: set(applied.now) == set(expected))
    assert applied.now == expected
    assert osc.read().done == len(expected)
    client._sock.close()


def test_osc_mapped_addresses_and_what_is_refused(applied: Applied, osc: OscInput) -> None:
    client = SimpleUDPClient(osc.host, osc.port)
    client.send_message("/1/fader1", 0.5)
    soon(lambda: applied.now.get("strength") == pytest.approx(0.3))
    client.send_message("/zoetrope/strength", 70.0)
    client.send_message("/nobody", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.sendto(b"\x00garbage\xff", (osc.host, osc.port))
        raw.sendto(b"/zoetrope/steps\x00,i\x00\x00", (osc.host, osc.port))  # cut off
    client.send_message("/zoetrope/steps", 4)
    soon(lambda: applied.now.get("steps") == 4)
    reading = osc.read()
    assert (reading.phase, reading.done, reading.dropped >= 2) == (OutputPhase.RUNNING, 2, True)
    assert "strength cannot be 70.0" in reading.text
    client._sock.close()
    osc.stop()
    assert osc.read().phase is OutputPhase.STOPPED


def test_osc_stays_on_loopback_and_says_when_the_port_is_taken(applied: Applied, osc: OscInput) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(InputError, match="OSC has no authentication"):
            OscOptions(host=host)
    assert OscOptions(host="0.0.0.0", allow_remote=True).allow_remote
    with pytest.raises(InputError, match="not an IP address"):
        OscOptions(host="everywhere")
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{osc.port}"):
        OscInput(OscOptions(port=osc.port), applied)


def test_osc_without_its_package_says_so(applied: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythonosc.dispatcher", None)
    with pytest.raises(InputError, match="OSC needs the package python-osc"):
        OscInput(OscOptions(port=0), applied)


# ---- MIDI ----


def test_midi_moves_what_is_mapped(applied: Applied) -> None:
    midi_backend.opened.clear()
    mappings = [
        one("strength", "cc:1:74", low=0.0 + 0.02, high=1.0),
        one("steps", "cc:*:7"),
        one("seed_lock", "note:10:60"),
        one("guidance_scale", "/osc/only"),
    ]
    port = MidiInput(MidiOptions(mappings=mappings, port="Keys", backend=BACKEND), applied)
    device = midi_backend.opened[0]
    assert (device.name, midi_ports(BACKEND)) == ("Keys", ("Knobs", "Keys"))
    device.receive(mido.Message("control_change", channel=0, control=74, value=127))
    device.receive(mido.Message("control_change", channel=8, control=7, value=0))
    device.receive(mido.Message("note_on", channel=9, note=60, velocity=3))
    soon(lambda: applied.now == {"strength": 1.0, "steps": 1, "seed_lock": True})
    device.receive(mido.Message("note_off", channel=9, note=60))
    soon(lambda: applied.now["seed_lock"] is False)
    device.receive(mido.Message("control_change", channel=1, control=74, value=0))  # another channel
    device.receive(mido.Message("clock"))
    reading = port.read()
    assert (reading.done, reading.dropped, reading.text) == (4, 1, "MIDI from Keys")
    port.stop()
    port.stop()
    assert device.closed
    assert port.read().phase is OutputPhase.STOPPED


def test_midi_says_what_is_missing(applied: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    mappings = [one("strength", "cc:1:74")]
    with pytest.raises(InputError, match=r"no MIDI input named 'Drums'\. Available: Knobs, Keys"):
        MidiInput(MidiOptions(mappings=mappings, port="Drums", backend=BACKEND), applied)
    with pytest.raises(InputError, match="No mapping has a MIDI address"):
        MidiOptions(mappings=[one("strength", "/osc")])
    with pytest.raises(InputError, match="mido's backend is not installed: No module named 'no_such_backend'"):
        MidiInput(MidiOptions(mappings=mappings, backend="no_such_backend"), applied)

    def no_sequencer(**_: object) -> None:
        raise SystemError("MidiInAlsa::initialize: error creating ALSA sequencer client object.")

    monkeypatch.setattr(importlib.import_module(BACKEND), "get_devices", no_sequencer)
    with pytest.raises(InputError, match=r"no usable MIDI: MidiInAlsa.*zoetrope\[midi\]"):
        midi_ports(BACKEND)
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(InputError, match="MIDI needs the package mido"):
        midi_ports()
