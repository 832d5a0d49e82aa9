"""A session's outputs over HTTP: recorded, downloaded, pushed to allowed hosts, ended separately and with the
session."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from app.outputs import kinds as kinds_module
from app.outputs.push_hosts import PushHosts
from app.outputs.recordings import MIN_BYTES, RecordingStore, recording_id
from app.outputs.virtual_camera import NoVirtualCameraError, VirtualCamera, VirtualCameraOptions
from pipelines.core.errors import InputError, OutputError
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.stream_server import wait_until, worker_client

KEY = "s3cret-stream-key"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    hosts = PushHosts.of(("127.0.0.1",), private=True)
    with (
        worker_client(max_sessions=8) as worker,
        api_server(worker, tmp_path_factory.mktemp("data"), push_hosts=hosts) as made,
    ):
        yield made


class Client:
    """A prompt-only session and its routes."""

    def __init__(self, server: ApiServer) -> None:
        self.http = server.http
        made = server.http.post("/v1/sessions", json={}).json()
        self.path = f"/v1/sessions/{made['id']}"
        self.token = {"Authorization": f"Bearer {made['token']}"}
        self.session = server.table.get(made["id"])
        wait_until(lambda: self.session.proxy.count > 2)

    def start(self, **wanted: object) -> httpx.Response:
        return self.http.post(f"{self.path}/outputs", headers=self.token, json=wanted)

    def outputs(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.http.get(f"{self.path}/outputs", headers=self.token).json()["outputs"]
        return found

    def stop(self, output: object) -> httpx.Response:
        return self.http.delete(f"{self.path}/outputs/{output}", headers=self.token)


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    made = Client(server)
    yield made
    made.session.close()


def pictures(file: bytes) -> int:
    with av.open(io.BytesIO(file)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_recording_is_downloaded_after_it_was_stopped(client: Client) -> None:
    assert client.http.post(f"{client.path}/outputs", json={"kind": "recording"}).status_code == 401
    assert client.outputs() == []
    answer = client.start(kind="recording")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["Location"] == f"{client.path}/outputs/{made['id']}"
    wait_until(lambda: int(str(client.outputs()[0]["done"])) > 5)
    growing = client.http.get(made["file_url"])
    assert (growing.status_code, growing.json()["error"]["code"]) == (409, "not_ready")
    assert client.http.get(f"/v1/recordings/{made['recording']}").json()["running"]
    last = client.stop(made["id"]).json()
    assert (last["kind"], last["phase"], last["recording"]) == ("recording", "stopped", made["recording"])
    assert last["text"].startswith("recorded ")
    assert client.outputs() == []
    file = client.http.get(last["file_url"])
    assert file.headers["content-type"] == "video/mp4"
    assert pictures(file.content) == last["done"]
    assert client.http.delete(f"/v1/recordings/{made['recording']}").status_code == 204
    assert client.http.get(f"/v1/recordings/{made['recording']}").status_code == 404


def test_a_prompt_recorded_with_sound_says_that_none_came(client: Client) -> None:
    made = client.start(kind="recording", sound=True)
    assert made.status_code == 201, made.text
    wait_until(lambda: int(str(client.outputs()[0]["done"])) > 2)
    assert str(client.outputs()[0]["text"]).endswith("; no sound has arrived yet")
    last = client.stop(made.json()["id"]).json()
    assert (last["phase"], last["text"].endswith("; no sound arrived")) == ("stopped", True)
    with av.open(io.BytesIO(client.http.get(last["file_url"]).content)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_the_document_shows_that_a_recording_may_have_sound(server: ApiServer) -> None:
    schemas = server.http.get("/v1/openapi.json").json()["components"]["schemas"]
    sound = schemas["RecordingRequest"]["properties"]["sound"]
    assert (sound["type"], sound["default"]) == ("boolean", False)


def test_a_recording_ends_with_its_session_and_stays(client: Client) -> None:
    made = client.start(kind="recording").json()
    wait_until(lambda: int(str(client.outputs()[0]["done"])) > 2)
    assert client.http.delete(client.path, headers=client.token).status_code == 204
    assert client.http.get(f"{client.path}/outputs", headers=client.token).status_code == 404
    wait_until(lambda: not client.http.get(f"/v1/recordings/{made['recording']}").json()["running"])
    assert pictures(client.http.get(made["file_url"]).content) > 2


@pytest.mark.parametrize("name", ["..", "x", "0" * 32, "%2e%2e%2fetc%2fpasswd", "..%5c.."])
def test_no_path_is_taken_from_a_request(server: ApiServer, name: str) -> None:
    for path in (f"/v1/recordings/{name}", f"/v1/recordings/{name}/file"):
        assert server.http.get(path).status_code == 404


def test_a_push_that_cannot_connect_says_so_without_its_key_and_leaves_the_session(client: Client) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answer = client.start(kind="rtmp", address=f"rtmp://127.0.0.1:{port}/live/{KEY}")
    assert answer.status_code == 201, answer.text
    wait_until(lambda: client.outputs()[0]["phase"] == "retrying")
    shown = client.outputs()[0]
    assert f"rtmp://127.0.0.1:{port}/" in str(shown["text"])
    assert KEY not in answer.text + str(shown)
    before = client.session.proxy.count
    wait_until(lambda: client.session.proxy.count > before)
    assert client.stop(shown["id"]).json()["phase"] == "stopped"


def test_a_whip_server_that_refuses_ends_the_push_alone_and_the_session_is_told(
    client: Client, server: ApiServer
) -> None:
    answer = client.start(kind="whip", address=f"{server.url}/v1/sessions/nobody/whip?{KEY}", token=KEY)
    assert answer.status_code == 201, answer.text
    wait_until(lambda: client.outputs()[0]["phase"] == "failed")
    shown = client.outputs()[0]
    assert "refused the stream (40" in str(shown["text"])
    assert KEY not in answer.text + str(shown)
    wait_until(lambda: "Output ended (whip)" in client.session.proxy.notice)
    assert not client.session.over
    assert client.stop(shown["id"]).json()["phase"] == "failed"
    assert client.outputs() == []


def test_a_whip_push_arrives_and_is_no_connection_of_its_session(client: Client, server: ApiServer) -> None:
    target = server.table.open(prompt_only=False)
    try:
        wait_until(lambda: target.proxy.info is not None)
        address = f"{server.url}/v1/sessions/{target.id}/whip"
        made = client.start(kind="whip", address=address, token=target.token).json()
        wait_until(lambda: target.read().accounting.taken > 3)
        wait_until(lambda: client.outputs()[0]["phase"] == "running" and int(str(client.outputs()[0]["done"])) > 0)
        assert client.session.read().connections == 0
        assert client.stop(made["id"]).json()["phase"] == "stopped"
        wait_until(lambda: target.read().connections == 0)
    finally:
        target.close()


def test_the_virtual_camera_has_the_stream_s_size(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[VirtualCameraOptions] = []

    def none_here(options: VirtualCameraOptions) -> VirtualCamera:
        asked.append(options)
        raise NoVirtualCameraError("There is no virtual camera to write to.", "Load v4l2loopback.")

    monkeypatch.setattr(kinds_module, "VirtualCamera", none_here)
    answer = client.start(kind="virtual_camera", frame_rate=24)
    assert (answer.status_code, answer.json()["error"]["remedy"]) == (409, "Load v4l2loopback.")
    assert [(options.size, options.rate) for options in asked] == [((32, 24), 24)]
    assert client.outputs() == []


@pytest.mark.parametrize(
    ("wanted", "status", "message"),
    [
        ({"kind": "rtmp", "address": f"rtmp://example.org/live/{KEY}"}, 403, "does not push to example.org"),
        ({"kind": "rtmp", "address": f"srt://127.0.0.1:9/{KEY}"}, 400, "does not fit rtmp"),
        ({"kind": "srt", "address": f"srt://127.0.0.1:9?mode=listener&streamid={KEY}"}, 403, "caller mode"),
        ({"kind": "whip", "address": f"https://u:{KEY}@127.0.0.1/"}, 400, "password"),
        ({"kind": "whip", "address": f"file:///{KEY}"}, 400, "not http or https"),
        ({"kind": "rtmp", "address": f"rtmp://127.0.0.1/{KEY}", "folder": "/tmp/x"}, 422, "folder"),
        ({"kind": "rtmp", "address": f"rtmp://127.0.0.1/{KEY}", "video_kbps": 1}, 422, "video_kbps"),
        ({"kind": "disk", "address": KEY}, 422, "kind"),
        ({"kind": "recording", "file": "/tmp/x.mp4"}, 422, "file"),
        ({"kind": "recording", "sound": "loud"}, 422, "sound"),
        ({"kind": "recording", "sound": 0}, 422, "sound"),
        ({"kind": "rtmp", "address": f"rtmp://127.0.0.1/{KEY}", "sound": True}, 422, "sound"),
    ],
)
def test_what_does_not_fit_is_refused_without_showing_the_key(
    client: Client, wanted: dict[str, object], status: int, message: str
) -> None:
    answer = client.start(**wanted)
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert KEY not in answer.text
    assert client.outputs() == []
    assert client.stop("rtmp-1").status_code == 404


def test_at_most_eight_at_once(client: Client) -> None:
    for _ in range(8):
        assert client.start(kind="recording").status_code == 201
    answer = client.start(kind="recording")
    assert (answer.status_code, answer.json()["error"]["message"]) == (409, "8 outputs are already in use.")


@pytest.mark.parametrize(
    ("names", "private", "allowed", "refused"),
    [
        ((), True, ("rtmp://a.example/x", "https://[::1]:8000/w"), ()),
        ((), False, (), ("rtmp://127.0.0.1/x", "https://a.example/w")),
        (("*",), False, ("rtmp://a.example/x",), ("srt://a.example:9?mode=listener",)),
        (
            ("A.example", "b.example:1936", "[::1]"),
            True,
            ("rtmp://a.example/x", "rtmps://u:p@a.EXAMPLE:9/x", "rtmp://b.example:1936/x", "https://[::1]/w"),
            ("rtmp://b.example/x", "rtmp://a.example.c/x", "rtmp://a.example@c/x", "rtmp://c\\@a.example/x",
             "rtmp://a@b@a.example/x", "rtmp://c#@a.example/x", "rtmp://c?@a.example/x", "http://127.0.0.1/w"),
        ),
    ],
)  # fmt: skip
def test_push_hosts(names: tuple[str, ...], private: bool, allowed: tuple[str, ...], refused: tuple[str, ...]) -> None:
    hosts = PushHosts.of(names, private=private)
    for url in allowed:
        hosts.check(url)
    for url in refused:
        with pytest.raises(InputError):
            hosts.check(url)


@pytest.mark.parametrize("name", ["rtmp://a/x", "a b", "", "a:b", "a/x"])
def test_a_push_host_that_is_none(name: str) -> None:
    with pytest.raises(InputError, match="--push-host"):
        PushHosts.of((name,), private=True)


def test_the_oldest_recordings_make_room_but_none_that_is_written(tmp_path: Path) -> None:
    store = RecordingStore(tmp_path, MIN_BYTES)
    old, young = store.begin(), store.begin()
    for path in (old, young):
        with path.open("wb") as file:
            file.truncate(MIN_BYTES // 2 + 1)
    assert not store.may_grow()  # both are written
    with pytest.raises(OutputError, match="no room"):
        store.begin()
    for path in (old, young):
        store.ended(path)
    assert store.may_grow()  # whatever the clock says of their age
    assert (old.exists(), young.exists()) == (False, True)


def test_what_another_process_writes_is_never_deleted_and_what_a_killed_one_left_is(tmp_path: Path) -> None:
    ours, theirs = RecordingStore(tmp_path, MIN_BYTES), RecordingStore(tmp_path, MIN_BYTES)
    running = theirs.begin()
    with running.open("wb") as file:
        file.truncate(MIN_BYTES + 1)
    os.utime(running, (0, 0))  # nothing was written for long, or the clock was set
    assert not ours.may_grow()
    found = ours.find(recording_id(running.name))
    assert found is not None
    assert found.running
    with pytest.raises(InputError, match="still being written"):
        ours.delete(found)
    stem = "20260101-000000-" + "0" * 32
    left = [tmp_path / f".{stem}.lock", tmp_path / f".{stem}.final.mp4"]  # of a killed process
    for path in left:
        path.touch()
    theirs.ended(running)
    again = ours.begin()
    assert not any(path.exists() for path in left)
    assert not running.exists()  # to make room
    ours.ended(again)
    assert list(tmp_path.iterdir()) == []


def test_recordings_sort_by_creation_also_after_the_clock_was_set_back(tmp_path: Path) -> None:
    store = RecordingStore(tmp_path, MIN_BYTES)
    later = tmp_path / f"20990101-000000-{'f' * 32}.mp4"  # before the clock was set back
    later.touch()
    paths = [store.begin() for _ in range(3)]
    assert sorted([later, *paths]) == [later, *paths]
    for path in paths:
        store.ended(path)
