"""SIGTERM and SIGHUP end a server as Ctrl-C does: takes and recordings finished, nothing left, status 0."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.server.ends import ends_like_ctrl_c
from tests.fakes.clips import play
from tests.fakes.live_process import bearer, live_process


@pytest.fixture(autouse=True)
def hang_ups() -> Iterator[None]:
    """Not ignored, as they are where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_either_signal_interrupts_once_and_never_the_clean_up(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    cleaned: list[int] = []

    def serve() -> None:
        try:
            signal.raise_signal(number)
            time.sleep(1)
        finally:
            for again in (signal.SIGTERM, signal.SIGHUP):
                signal.raise_signal(again)
                cleaned.append(again)

    with pytest.raises(KeyboardInterrupt), ends_like_ctrl_c():
        serve()
    assert cleaned == [signal.SIGTERM, signal.SIGHUP]
    assert signal.getsignal(number) is before


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ends_like_ctrl_c():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_server_s_own_handler_of_sigterm_also_gets_hang_ups() -> None:
    got: list[int] = []
    with ends_like_ctrl_c():
        before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))  # as uvicorn does
        signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with ends_like_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process maps")
@pytest.mark.soak
@pytest.mark.parametrize("everyone", [False, True], ids=["the front alone", "its whole control group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_takes_and_recordings_are_finished_and_nothing_is_left(
    tmp_path: Path, number: signal.Signals, *, everyone: bool
) -> None:
    with live_process("--data", str(tmp_path), "--size", "64x64") as live:
        session = live.open(prompt_only=True)
        path = f"/v1/sessions/{session['id']}"
        assert live.http.post(f"{path}/take", headers=bearer(session)).status_code == 201
        answer = live.http.post(f"{path}/outputs", headers=bearer(session), json={"kind": "recording"})
        assert answer.status_code == 201, answer.text
        time.sleep(3)
        shared = {Path(found) for found in re.findall(r"/dev/shm/psm_\w+", maps(live.front.pid))}
        assert shared
        told = [child for child in live.front.children() if "resource_tracker" not in " ".join(child.cmdline())]
        live.process.send_signal(number)
        for child in told if everyone else ():
            child.send_signal(number)
        assert live.process.wait(10) == 0
    assert "leaked" not in "".join(live.output)
    assert "Traceback" not in "".join(live.output)
    (folder,) = (tmp_path / "takes").iterdir()
    assert json.loads((folder / "take.jsonl").read_text(encoding="utf-8").splitlines()[-1])["kind"] == "end"
    assert not (folder / "running.lock").exists()
    (recording,) = (tmp_path / "recordings").glob("*.mp4")
    assert len(play(recording).greys) > 10
    assert "moof" not in str(recording.read_bytes()[:4096])  # the ordinary file, with its index at the front
    assert not any(block.exists() for block in shared)


@pytest.mark.soak
def test_a_server_that_is_told_to_end_while_it_starts_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "live", "--model", "identity", "--port", "0", "--data", str(tmp_path)]
    for wait_s in (0.6, 1.5, 2.5):
        process = subprocess.Popen([*command, "--no-open"], stderr=subprocess.PIPE, text=True)
        time.sleep(wait_s)
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert process.returncode in (0, 130, -signal.SIGINT, -signal.SIGTERM), (wait_s, said)  # before or in imports
        assert "leaked" not in said
        assert "Traceback" not in said
