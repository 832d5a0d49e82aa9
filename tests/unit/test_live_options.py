"""Options of `zoetrope live` for outputs and controllers: checked before it starts; OSC reaches the newest session."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest
from pythonosc.udp_client import SimpleUDPClient

from app.cli import live
from app.cli.live_options import api_limits, controller_options, push_hosts, webrtc_options
from app.controllers.opening import ControllerOptions, NewestSession, controllers
from app.controllers.osc import OscInput
from app.session.table import SessionTable
from pipelines.core.errors import InputError
from tests.fakes.stream_server import wait_until, worker_client

MAPPINGS = [
    {"address": "/1/fader1", "control": "strength", "low": 0.1, "high": 0.9},
    {"address": "cc:1:74", "control": "guidance_scale"},
]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    live.add_parser(parser.add_subparsers())
    return parser.parse_args(["live", *arguments])


@pytest.fixture
def mapping_file(tmp_path: Path) -> Path:
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps({"version": 1, "mappings": MAPPINGS}), encoding="utf-8")
    return path


def test_nothing_is_open_unless_asked_for() -> None:
    chosen = options()
    assert controller_options(chosen) == ControllerOptions()
    assert webrtc_options(chosen, private=False).ice_servers == ()
    assert push_hosts(chosen, private=True).any_host
    assert push_hosts(chosen, private=False).pairs == frozenset()
    assert not push_hosts(chosen, private=False).any_host
    assert api_limits(chosen).take_bytes == api_limits(chosen).recording_bytes == 10 << 30


def test_what_was_asked_for(mapping_file: Path) -> None:
    chosen = options(
        *("--osc", "--midi", "Faders 1", "--control-map", str(mapping_file)),
        *("--push-host", "live.example.org", "--push-host", "b.example:1936", "--take-quota-gb", "0.5"),
        *("--ice-server", "stun:s.example:3478", "--ice-server", "turn:t.example:3478,me,pass,word"),
    )
    found = controller_options(chosen)
    assert (found.osc_port, found.midi_port) == (9000, "Faders 1")
    assert [mapping.address for mapping in found.mappings] == ["/1/fader1", "cc:1:74"]
    stun, turn = webrtc_options(chosen, private=True).ice_servers
    assert (stun.urls, stun.username) == (("stun:s.example:3478",), None)
    assert (turn.username, turn.credential) == ("me", "pass,word")
    assert push_hosts(chosen, private=True).pairs == {("live.example.org", None), ("b.example", 1936)}
    assert api_limits(chosen).take_bytes == 1 << 29


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--control-map", "x.json"), "without --osc or --midi"),
        (("--midi",), "--midi needs --control-map"),
        (("--osc", "--control-map", "gone.json"), "gone.json cannot be read"),
        (("--osc", "70000"), "OSC port 70000"),
        (("--push-host", "rtmp://a/b"), "--push-host"),
        (("--take-quota-gb", "0.01"), "--take-quota-gb cannot be 0.01"),
        (("--recording-quota-gb", "nan"), "--recording-quota-gb cannot be nan"),
        (("--ice-server", "http://a"), "is not an ICE server"),
        (("--ice-server", "turn:a:1,me"), "no password"),
    ],
)
def test_what_makes_no_sense_stops_before_the_worker_starts(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        live.run(options("--port", "0", "--no-open", *arguments))


def test_osc_changes_the_session_that_was_opened_last() -> None:
    with worker_client(max_sessions=2) as worker:
        table = SessionTable(worker)
        try:
            with controllers(ControllerOptions(osc_port=0), table) as opened:
                assert isinstance(opened[0], OscInput)
                osc = SimpleUDPClient("127.0.0.1", opened[0].port)
                osc.send_message("/zoetrope/strength", 0.3)
                wait_until(lambda: "No session is running" in opened[0].read().text)
                first = table.open()
                time.sleep(0.01)
                second = table.open()
                osc.send_message("/zoetrope/strength", 0.25)
                wait_until(lambda: second.proxy.control.changes().get("strength") == 0.25)
                assert "strength" not in first.proxy.control.changes()
                second.close()
                osc.send_message("/zoetrope/strength", 0.75)
                wait_until(lambda: first.proxy.control.changes().get("strength") == 0.75)
                osc._sock.close()
            first.close()
            with pytest.raises(InputError, match="No session is running"):
                NewestSession(table).apply({"strength": 0.5})
        finally:
            table.stop()
