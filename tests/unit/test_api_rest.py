"""The HTTP routes against a real server and worker: sessions, Motion JPEG, one picture, metrics, health, errors."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.access import MJPEG, signed_path
from app.api.metrics import TableCollector
from app.api.schema import ControlChanges, OpenRequest
from app.guard.tokens import sign
from app.session.session import Session
from app.worker.handle import WorkerHandle
from app.worker.messages import GpuMemory
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionAccounting
from pipelines.core.control_table import STREAM_CONTROLS
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.heic_files import heic
from tests.fakes.picture_files import corners, exif, saved
from tests.fakes.stream_server import WAIT_S, wait_until, worker_client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with worker_client(max_sessions=2) as worker, api_server(worker, tmp_path_factory.mktemp("data")) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        made: ApiServer = request.getfixturevalue("server")
        for session in made.table.sessions:
            session.close()


def opened(server: ApiServer, **body: object) -> tuple[dict[str, object], httpx.Headers]:
    """Return the response to POST /v1/sessions and the header with its token."""
    answer = server.http.post("/v1/sessions", json=body)
    assert answer.status_code == 201, answer.text
    content: dict[str, object] = answer.json()
    return content, httpx.Headers({"Authorization": f"Bearer {content['token']}"})


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check the form of a refusal and return its message."""
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"code", "message", "remedy"}
    assert content["error"]["code"] == code
    return str(content["error"]["message"])


def picture_file(width: int = 32, height: int = 24, value: int = 90) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(target, "PNG")
    return target.getvalue()


def test_a_session_is_opened_read_changed_and_closed(server: ApiServer) -> None:
    made, token = opened(server, controls={"prompt": "a cat:2 | a dog", "strength": 0.4})
    path = f"/v1/sessions/{made['id']}"
    assert made["stream_url"] == f"{path}/stream"
    assert made["expires_after_s"] == 30
    assert made["info"] == {
        "width": 32, "height": 24, "frame_rate": 24.0, "frames_per_chunk": 1, "latency_ticks": 1, "model": "identity",
        "dtype": "uint8", "device": "cpu", "backend": "identity", "takes_actions": False,
    }  # fmt: skip
    wait_until(lambda: server.http.get(path, headers=token).json()["accounting"]["out"] > 2)
    found = server.http.get(path, headers=token).json()
    counts = found["accounting"]
    assert counts["taken"] == counts["out"] + counts["dropped"] + counts["skipped"] + counts["in_flight"]
    assert (found["state"], found["controls"]["strength"]) == ("live", 0.4)
    assert found["controls"]["prompt"] == [{"text": "a cat", "weight": 2.0}, {"text": "a dog", "weight": 1.0}]
    assert "token" not in found
    changed = server.http.patch(path, headers=token, json={"controls": {"strength": 1}, "prompt_only": False})
    assert changed.json()["controls"]["strength"] == 1
    assert server.http.delete(path, headers=token).status_code == 204
    refused(server.http.get(path, headers=token), 404, "unknown_session")


def test_a_session_s_routes_need_its_own_token(server: ApiServer) -> None:
    made, _ = opened(server)
    _, other = opened(server)
    path = f"/v1/sessions/{made['id']}"
    for method in ("GET", "DELETE"):
        refused(server.http.request(method, path), 401, "unauthorised")
        refused(server.http.request(method, path, headers=other), 401, "unauthorised")
    refused(server.http.patch(path, headers=other, json={}), 401, "unauthorised")
    unknown = server.http.get("/v1/sessions/nobody", headers=other)
    assert unknown.json() == server.http.get(path, headers=other).json()  # who guesses learns nothing
    assert server.http.get(path).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"controls": {"strength": 7}}, "bad_control", "less than or equal to 1"),
        ({"controls": {"strength": "0.5"}}, "bad_control", "valid number"),
        ({"controls": {"strength": None}}, "bad_control", "valid number"),
        ({"controls": {"seed_lock": 1}}, "bad_control", "valid boolean"),
        ({"controls": {"model": "other"}}, "bad_control", "Extra inputs"),
        ({"controls": {"step_function": "euler"}}, "bad_control", "'lcm'"),
        ({"controls": {"prompt": "x" * 20_000}}, "bad_control", "at most 16000"),
        ({"controls": {"prompt": "x" * 3000}}, "bad_control", "3000 characters"),
        ({"prompt_only": "perhaps"}, "bad_input", "boolean"),
        ({"path": "/etc/passwd"}, "bad_input", "Extra inputs"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    server: ApiServer, change: dict[str, object], code: str, said: str
) -> None:
    made, token = opened(server)
    path = f"/v1/sessions/{made['id']}"
    before = server.http.get(path, headers=token).json()["controls"]
    assert said in refused(server.http.patch(path, headers=token, json=change), 422, code)
    assert server.http.get(path, headers=token).json()["controls"] == before


def test_a_full_server_says_busy_within_a_second_and_when_to_come_back(server: ApiServer) -> None:
    opened(server)
    opened(server)
    for call in (
        lambda: server.http.post("/v1/sessions"),
        lambda: server.http.post("/v1/generate", files={"prompt": (None, "a cat")}),
    ):
        began_s = time.monotonic()
        answer = call()
        assert time.monotonic() - began_s < 1
        assert "all 2 sessions" in refused(answer, 503, "busy")
        assert answer.headers["retry-after"] == "5"


def test_motion_jpeg_flows_and_counts_as_a_connection(server: ApiServer) -> None:
    made, token = opened(server, controls={"prompt": "a cat"})
    session = server.table.get(str(made["id"]))
    with server.http.stream("GET", str(made["mjpeg_url"])) as answer:
        assert answer.headers["content-type"].startswith("multipart/x-mixed-replace; boundary=")
        body = b""
        for chunk in answer.iter_bytes():
            body += chunk
            if body.count(b"\xff\xd9") >= 4:
                assert connections(session) == 1
                break
    parts = re.findall(rb"Content-Length: (\d+)\r\n\r\n", body)
    assert len(parts) >= 4
    first = body.index(b"\r\n\r\n") + 4
    image = Image.open(io.BytesIO(body[first : first + int(parts[0])]))
    assert (image.size, image.format) == ((32, 24), "JPEG")
    wait_until(lambda: connections(session) == 0)
    assert "pack" in server.http.get(f"/v1/sessions/{made['id']}", headers=token).json()["stages"]


def test_motion_jpeg_gives_a_frame_at_once_and_again_while_it_stands(server: ApiServer) -> None:
    """Chromium shows a part when the next one begins."""
    made, _ = opened(server, prompt_only=False)
    session = server.table.get(str(made["id"]))
    image = np.full((24, 32, 3), 90, np.uint8)
    wait_until(lambda: session.submit(image) is not None)
    wait_until(lambda: session.read().accounting.out == 1)
    with server.http.stream("GET", str(made["mjpeg_url"])) as answer:
        assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-store")
        began_s, times_s, body = time.monotonic(), [], b""
        for chunk in answer.iter_bytes():
            body += chunk
            times_s += [time.monotonic() - began_s] * (body.count(b"\xff\xd9") - len(times_s))
            if len(times_s) == 3:
                break
    assert times_s[0] < 0.15
    assert 0.15 < times_s[1] < 0.6
    assert 1.0 < times_s[2] < 2.0
    first, second, third = re.findall(rb"\r\n\r\n(\xff\xd8.*?\xff\xd9)\r\n--", body, re.DOTALL)
    assert first == second == third
    assert abs(int(np.asarray(Image.open(io.BytesIO(first)))[12, 16, 0]) - 90) <= 2


def connections(session: Session) -> int:
    return session.read().connections


def test_motion_jpeg_needs_a_token_that_holds(server: ApiServer) -> None:
    made, _ = opened(server)
    session = server.table.get(str(made["id"]))
    path = f"/v1/sessions/{session.id}/mjpeg"
    refused(server.http.get(path), 401, "unauthorised")
    late = sign(session.token.encode(), f"{MJPEG} {session.id}", 60, time.monotonic() - 61)
    other = sign(session.token.encode(), f"whep {session.id}", 60, time.monotonic())
    long = signed_path(server.context, session, MJPEG).split("token=")[1] + "x"
    for token in ("", "x", late, other, session.token, long):
        refused(server.http.get(path, params={"token": token}), 401, "unauthorised")
    refused(server.http.get("/v1/sessions/nobody/mjpeg", params={"token": late}), 401, "unauthorised")


def test_ffmpeg_reads_motion_jpeg(server: ApiServer, tmp_path: Path) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("no ffmpeg on this machine")
    made, _ = opened(server, controls={"prompt": "a cat"})
    target = tmp_path / "%d.png"
    source = f"{server.url}{made['mjpeg_url']}"
    command = [
        ffmpeg,
        "-v",
        "error",
        "-f",
        "mpjpeg",
        "-i",
        source,
        "-frames:v",
        "3",
        "-fps_mode",
        "passthrough",
        target,
    ]
    subprocess.run(command, check=True, timeout=WAIT_S)
    pictures = [cv2.imread(str(tmp_path / f"{i}.png")) for i in (1, 2, 3)]
    assert [picture.shape for picture in pictures if picture is not None] == [(24, 32, 3)] * 3


def test_one_picture_from_a_prompt_or_of_a_picture(server: ApiServer) -> None:
    made = server.http.post("/v1/generate", files={"prompt": (None, "a cat")})
    assert (made.status_code, made.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(made.content)).size == (32, 24)
    parts = {"options": (None, '{"format": "jpeg", "controls": {"strength": 0.4}}'), "picture": picture_file()}
    made = server.http.post("/v1/generate", files=parts)
    image = Image.open(io.BytesIO(made.content))
    assert (image.format, made.headers["content-type"]) == ("JPEG", "image/jpeg")
    assert (abs(np.asarray(image).astype(int) - 90) <= 2).all()
    assert server.table.sessions == ()


def test_a_picture_is_read_as_it_is_shown(server: ApiServer) -> None:
    """Upright, and black where it is transparent: for each format that is taken."""
    upright = Image.fromarray(corners())
    side = upright.transpose(Image.Transpose.ROTATE_90)
    for form, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"quality": 95})):
        made = server.http.post("/v1/generate", files={"picture": saved(side, form, exif=exif(6), **options)})
        found = np.asarray(Image.open(io.BytesIO(made.content)).convert("RGB")).astype(int)
        for place in ((4, 4), (4, 28), (20, 4), (20, 28)):
            wanted = corners()[place[0] * 32 // 24, place[1] * 48 // 32].astype(int)
            assert np.abs(found[place] - wanted).max() < 30, (form, place)
    clear = Image.new("RGBA", (32, 24), (200, 30, 30, 0))
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        made = server.http.post("/v1/generate", files={"picture": saved(clear, form, **options)})
        assert np.asarray(Image.open(io.BytesIO(made.content)).convert("RGB")).max() == 0
    for data, said in ((heic(), "HEIC, not JPEG"), (saved(upright, "GIF"), "GIF, not JPEG, PNG or WebP")):
        assert said in refused(server.http.post("/v1/generate", files={"picture": data}), 400, "bad_input")


def bomb() -> bytes:
    """Return a PNG of a few bytes that claims 30000 x 30000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_bad_uploads_are_refused(server: ApiServer) -> None:
    def sent(**parts: object) -> httpx.Response:
        return server.http.post("/v1/generate", files=parts)

    assert "too large" in refused(sent(picture=bomb()), 400, "bad_input")
    refused(sent(picture=b"no picture"), 400, "bad_input")
    refused(sent(picture=bytes(5 << 20)), 413, "too_large")
    refused(sent(prompt=(None, "x" * 70_000)), 413, "too_large")
    refused(sent(options=(None, "{")), 400, "bad_input")
    refused(sent(options=(None, '{"controls": {"prompt": "\\ud800"}}')), 400, "bad_input")
    refused(sent(options=(None, '{"controls": {"steps": 99}}')), 422, "bad_control")
    refused(sent(path=(None, "/etc/passwd")), 400, "bad_input")
    refused(server.http.post("/v1/generate", content=b"{}"), 400, "bad_input")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(server.http.post("/v1/generate", content=b"--x\r\nhalf", headers=broken), 400, "bad_input")
    twice = [("prompt", (None, b"a")), ("prompt", (None, b"b"))]
    refused(server.http.post("/v1/generate", files=twice), 400, "bad_input")
    assert server.table.sessions == ()


def test_metrics_count_open_and_ended_sessions_alike(server: ApiServer) -> None:
    made, token = opened(server, controls={"prompt": "a cat"})
    path = f"/v1/sessions/{made['id']}"
    wait_until(lambda: server.http.get(path, headers=token).json()["accounting"]["out"] > 3)
    text = server.http.get("/metrics").text
    assert f'zoetrope_stage_seconds{{quantile="0.95",session="{made["id"]}",stage="denoise"}}' in text
    assert figure(text, "zoetrope_sessions") == 1
    assert figure(text, "zoetrope_ready") == 1
    assert figure(text, 'zoetrope_resident_bytes{process="worker"}') > 1e6
    assert str(made["token"]) not in text
    out = figure(text, 'zoetrope_frames_total{kind="out"}')
    assert out > 3
    server.http.delete(path, headers=token)
    wait_until(lambda: figure(server.http.get("/metrics").text, "zoetrope_frames_in_flight") == 0)
    text = server.http.get("/metrics").text
    assert figure(text, "zoetrope_sessions") == 0
    totals = [figure(text, f'zoetrope_frames_total{{kind="{kind}"}}') for kind in ("out", "dropped", "skipped")]
    assert figure(text, 'zoetrope_frames_total{kind="taken"}') == sum(totals)
    assert totals[0] >= out


def test_a_closed_session_counts_as_in_flight_until_the_worker_has_let_go_of_it() -> None:
    counts = SessionAccounting(taken=5, out=2, in_flight=3)
    session = SimpleNamespace(id="a", read=lambda: SimpleNamespace(accounting=counts))
    table = SimpleNamespace(sessions=(session,), client=SimpleNamespace(max_sessions=1))
    collector = TableCollector(table)  # type: ignore[arg-type]
    collector.update()
    table.sessions = ()
    collector.update()
    assert collector._ended == SessionAccounting()
    counts = SessionAccounting(taken=5, out=2, dropped=3)
    collector.update()
    collector.update()
    assert collector._ended == counts


def test_metrics_watch_the_event_loop_and_the_gpu(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = server.http.get("/metrics").text
    assert "zoetrope_gpu_bytes" not in text  # this worker computes on the CPU
    calls = figure(text, "zoetrope_event_loop_callbacks_total")
    assert calls > 10
    assert 0 < figure(text, "zoetrope_event_loop_longest_seconds") < 60
    assert 0 < figure(text, "zoetrope_event_loop_longest_cpu_seconds") < 60
    for clock in ("wall", "cpu"):
        assert 0 <= figure(text, f'zoetrope_event_loop_blocked_total{{clock="{clock}"}}') < calls
    memory = GpuMemory(allocated_bytes=3 << 20, reserved_bytes=5 << 20)
    monkeypatch.setattr(server.table.workers, "_gpu_memory", memory)
    text = server.http.get("/metrics").text
    assert figure(text, 'zoetrope_gpu_bytes{kind="allocated",process="worker"}') == 3 << 20
    assert figure(text, 'zoetrope_gpu_bytes{kind="reserved",process="worker"}') == 5 << 20


def figure(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_health_and_unknown_addresses(server: ApiServer) -> None:
    assert server.http.get("/healthz").json() == {"status": "ok"}
    assert server.http.get("/readyz").json() == {"status": "ready"}
    refused(server.http.get("/v1/nothing"), 404, "not_found")
    refused(server.http.put("/v1/sessions"), 405, "method_not_allowed")
    assert server.http.get("/docs").status_code == 404


def test_a_worker_that_cannot_start_is_not_ready(tmp_path: Path) -> None:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=-5))
    with WorkerHandle(options) as worker, api_server(worker, tmp_path) as server:
        answer = server.http.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        wait_until(lambda: server.http.get("/readyz").json() == {"status": "failed"})
        assert "width cannot be -5" in refused(server.http.post("/v1/sessions"), 503, "worker")
        assert server.http.get("/healthz").status_code == 200


def test_the_schema_of_changes_is_the_control_table() -> None:
    schema = ControlChanges.model_json_schema()
    assert tuple(schema["properties"]) == STREAM_CONTROLS
    assert schema["properties"]["strength"]["minimum"] == 0.02
    assert "default" not in schema["properties"]["strength"]
    assert OpenRequest().controls.changes() == {}
