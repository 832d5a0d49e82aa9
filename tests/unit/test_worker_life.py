"""A worker that hangs holds nobody, is noticed, and is replaced; one that is only slow is left alone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.worker.beat import Beat
from app.worker.handle import WorkerHandle, WorkerPhase
from app.worker.link import LifeSigns
from app.worker.messages import WorkerAlive
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionProxy, SessionState
from pipelines.core.controls import Control
from pipelines.core.errors import WorkerError
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.api_server import api_server
from tests.unit.test_worker_client import until

OPTIONS = WorkerOptions(model="identity", engine=LoaderOptions(width=16, height=12), beat_s=0.05)
SIGNS = LifeSigns(check_s=0.05, silent_s=0.4, dead_s=1.2)
PATIENT = LifeSigns(check_s=0.05, silent_s=0.4, dead_s=3600.0)


@pytest.fixture
def patient() -> Iterator[WorkerHandle]:
    with WorkerHandle(OPTIONS, signs=PATIENT) as made:
        made.wait_ready(60)
        yield made


def test_a_worker_that_hangs_is_replaced_and_its_sessions_go_on() -> None:
    with WorkerHandle(OPTIONS, signs=SIGNS) as client:
        session = client.open(control=Control(strength=0.3), prompt_only=True)
        assert session.newest(0, 20.0) is not None
        pid = client.status.pid
        assert pid is not None
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        until(lambda: bool(client.status.silence))
        assert "has not responded" in client.status.silence
        assert not client.status.serving
        until(lambda: client.status.restarts == 1)
        assert "not responded" in client.status.text
        assert "out of memory" not in client.status.text  # the front has killed it
        before = session.count
        assert session.newest(before, 20.0) is not None
        assert client.status.serving
        assert client.status.pid != pid
        assert not psutil.pid_exists(pid)
        assert session.control == Control(strength=0.3)


def fill_the_pipe_of(stream: SessionProxy) -> None:
    refused = 0
    while refused < 3:
        try:
            stream.set_control(Control.of({"prompt": "much" * 400}))
        except WorkerError:
            refused += 1
            time.sleep(0.1)
        else:
            refused = 0


def test_nobody_waits_for_a_worker_that_hangs(patient: WorkerHandle, tmp_path: Path) -> None:
    with api_server(patient, tmp_path) as server:
        made = server.http.post("/v1/sessions", json={"prompt_only": True}).json()
        path, token = f"/v1/sessions/{made['id']}", {"Authorization": f"Bearer {made['token']}"}
        until(lambda: server.http.get(path, headers=token).json()["state"] == "live")
        worker = psutil.Process(patient.status.pid)
        worker.suspend()
        try:
            began, stream = time.monotonic(), server.context.table.get(made["id"]).proxy
            fill_the_pipe_of(stream)
            changes = {"controls": {"prompt": "a cat"}}
            answer = server.http.patch(path, headers=token, json=changes)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "worker"
            assert "nothing was changed" in answer.json()["error"]["message"]
            until(lambda: server.http.get("/readyz").status_code == 503)
            assert server.http.get("/readyz").json() == {"status": "not responding"}
            for other in ("/v1/models", "/metrics", "/healthz"):
                assert server.http.get(other).status_code == 200
            assert server.http.get(path, headers=token).status_code == 200
            assert time.monotonic() - began < 10
        finally:
            worker.resume()
        until(lambda: server.http.get("/readyz").status_code == 200)
        until(lambda: patient.status.serving)
        assert server.http.patch(path, headers=token, json=changes).status_code == 200  # what was refused works now
        until(lambda: "a cat" in str(server.http.get(path, headers=token).json()["controls"]["prompt"]))
        assert patient.status.restarts == 0


def test_the_server_stops_though_its_worker_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.handle._STOP_TIMEOUT_S", 0.2)
    client = WorkerHandle(OPTIONS, signs=PATIENT)
    client.start()
    client.wait_ready(60)
    session = client.open(prompt_only=True)
    pid = client.status.pid
    psutil.Process(pid).suspend()
    began = time.monotonic()
    session.close()
    client.stop()
    assert time.monotonic() - began < 5
    assert session.state is SessionState.CLOSED
    assert client.status.phase is WorkerPhase.STOPPED
    assert not psutil.pid_exists(pid or 0)


def test_a_change_that_is_refused_is_not_kept(patient: WorkerHandle) -> None:
    session = patient.open(control=Control(strength=0.3))
    until(lambda: session.state is SessionState.LIVE)
    link = patient._link
    assert link is not None
    with link._changed:  # its writer takes nothing meanwhile
        link._waiting.extend([*[WorkerAlive()] * 256])  # type: ignore[list-item]
        with pytest.raises(WorkerError, match="does not respond"):
            session.set_control(Control(strength=0.5))
        with pytest.raises(WorkerError, match="does not respond"):
            session.set_source(prompt_only=False)
        link._waiting.clear()
    assert session.control == Control(strength=0.3)
    session.close()


def test_the_beat_says_how_long_a_step_takes_and_ends_with_the_pipe() -> None:
    said = list[float]()
    gone = threading.Event()

    def send(message: WorkerAlive) -> None:
        if gone.is_set():
            raise BrokenPipeError
        said.append(message.step_s)

    beat = Beat(send, 0.01)
    beat.start()
    until(lambda: len(said) > 5)
    assert said == sorted(said)
    assert said[-1] >= 0.03
    beat.stepped()
    count = len(said)
    until(lambda: len(said) > count + 1)
    assert min(said[count:]) < said[count - 1]
    gone.set()
    until(lambda: not beat._thread.is_alive())


def test_a_step_that_takes_too_long_is_a_hang_too() -> None:
    """A fault of a GPU: the process beats, its loop does not go on."""
    signs = LifeSigns(check_s=0.05, silent_s=5.0, dead_s=60.0, step_s=0.5)
    with WorkerHandle(OPTIONS, signs=signs) as client:
        client.wait_ready(60)
        link = client._link
        assert link is not None
        link._step_s = 0.6  # as if it had said so
        until(lambda: bool(link.hung) or link._step_s < 0.5)
        link._step_s = 0.6
        until(lambda: client.status.restarts == 1 or bool(link.hung))
        assert "One step of the worker's engine has taken" in link.hung or client.status.restarts == 1


@pytest.mark.parametrize("changes", [{"check_s": 0.0}, {"silent_s": 50.0}, {"dead_s": 1.0}])
def test_signs_that_do_not_fit_together(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        LifeSigns(**changes)
