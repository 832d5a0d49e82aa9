"""examples/add_an_output.py: an output that is one file and one row is started, listed and stopped over HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from fractions import Fraction

import cv2
import httpx
import numpy as np
import pytest

from app.outputs.kinds import OUTPUT_KINDS
from app.outputs.output import OutputPhase
from app.outputs.push_hosts import PushHosts
from app.page.page import outputs_script
from examples.add_an_output import LED_WALL, LedWall, LedWallRequest, main, receive
from pipelines.core.types import Frame
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.stream_server import HEIGHT_PX, WIDTH_PX, wait_until, worker_client

TIMEOUT_S = 10.0
TITLES = ["Recording", "RTMP", "SRT", "WHIP", "Virtual camera", "LED wall"]
KINDS = ["recording", "rtmp", "srt", "whip", "virtual_camera", "led_wall"]


@pytest.fixture
def wall() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(TIMEOUT_S)
        yield made


def address_of(wall: socket.socket) -> str:
    return f"tcp://127.0.0.1:{wall.getsockname()[1]}"


def accepted(wall: socket.socket) -> socket.socket:
    sender, _ = wall.accept()
    sender.settimeout(TIMEOUT_S)
    return sender


def picture(jpeg: bytes) -> np.ndarray:
    """By another decoder than the one whose encoder made it."""
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def smooth(red: int) -> np.ndarray:
    """JPEG keeps this within a few levels."""
    image = np.empty((48, 64, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = red, np.arange(64) * 3, np.arange(48)[:, None] * 4
    return image


def test_the_wall_gets_the_newest_picture(wall: socket.socket) -> None:
    output = LedWall(LedWallRequest(kind="led_wall", address=address_of(wall), frame_rate=60, quality=95))
    assert output.read().phase is OutputPhase.STARTING
    for seq, red in enumerate((40, 200)):
        output.offer(Frame(image=smooth(red), pts=seq, time_base=Fraction(1, 24), seq=seq), 0)
        if not seq:
            sender = accepted(wall)
            first = picture(receive(sender, 1)[0])
            assert np.abs(first.astype(int) - smooth(40)).max() <= 8
    with sender:
        wait_until(lambda: int(picture(receive(sender, 1)[0])[24, 32, 0]) > 190)
        last = picture(receive(sender, 1)[0])
        assert np.abs(last.astype(int) - smooth(200)).max() <= 8
        output.stop()
    reading = output.read()
    assert (reading.phase, reading.text) == (OutputPhase.STOPPED, f"sent {reading.done} pictures")
    assert reading.done >= 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with (
        worker_client() as worker,
        api_server(
            worker,
            tmp_path_factory.mktemp("data"),
            push_hosts=PushHosts.of(("127.0.0.1",), private=True),
            outputs=(*OUTPUT_KINDS, LED_WALL),
        ) as made,
    ):
        yield made


class Client:
    """A session of its own and its outputs."""

    def __init__(self, server: ApiServer) -> None:
        made = server.http.post("/v1/sessions", json={}).json()
        self._http, self._path = server.http, f"/v1/sessions/{made['id']}/outputs"
        self._token = {"Authorization": f"Bearer {made['token']}"}
        self.session = server.table.get(made["id"])
        wait_until(lambda: self.session.proxy.count > 0)

    def start(self, **wanted: object) -> httpx.Response:
        return self._http.post(self._path, headers=self._token, json={"kind": "led_wall", **wanted})

    def outputs(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self._http.get(self._path, headers=self._token).json()["outputs"]
        return found

    def stop(self, output: object) -> httpx.Response:
        return self._http.delete(f"{self._path}/{output}", headers=self._token)


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    made = Client(server)
    yield made
    made.session.close()


def test_it_is_started_listed_and_stopped_over_http(client: Client, wall: socket.socket) -> None:
    answer = client.start(address=address_of(wall), frame_rate=60)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["kind"], made["recording"], made["file_url"]) == ("led_wall", None, None)
    assert made["id"].startswith("led_wall-")
    with accepted(wall) as sender:
        assert {picture(jpeg).shape for jpeg in receive(sender, 5)} == {(HEIGHT_PX, WIDTH_PX, 3)}
        (listed,) = client.outputs()
        assert (listed["id"], listed["kind"], listed["phase"]) == (made["id"], "led_wall", "running")
        assert int(str(listed["done"])) >= 4
        assert client.stop(made["id"]).json()["phase"] == "stopped"
    assert client.outputs() == []


def test_a_wall_that_is_not_there_ends_the_output_alone(client: Client, wall: socket.socket) -> None:
    address = address_of(wall)
    wall.close()
    assert client.start(address=address).status_code == 201
    wait_until(lambda: client.outputs()[0]["phase"] == "failed")
    assert "refused" in str(client.outputs()[0]["text"])
    wait_until(lambda: "Output ended (LED wall)" in client.session.proxy.notice)
    assert not client.session.over


@pytest.mark.parametrize(
    ("wanted", "status", "message"),
    [
        ({"address": "tcp://example.org:9"}, 403, "does not push to example.org"),
        ({"address": "tcp://127.0.0.1"}, 422, "address"),
        ({"address": "rtmp://127.0.0.1:9"}, 422, "address"),
        ({"address": "tcp://127.0.0.1:9", "quality": 0}, 422, "quality"),
        ({"address": "tcp://127.0.0.1:9", "folder": "/tmp"}, 422, "folder"),
    ],
)
def test_what_does_not_fit_is_refused(client: Client, wanted: dict[str, object], status: int, message: str) -> None:
    answer = client.start(**wanted)
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert client.outputs() == []


def test_the_document_has_it(server: ApiServer) -> None:
    schemas = server.http.get("/v1/openapi.json").json()["components"]["schemas"]
    assert schemas["OutputView"]["properties"]["kind"]["enum"] == KINDS
    fields = schemas["LedWallRequest"]["properties"]
    assert fields["kind"]["const"] == "led_wall"
    assert (fields["frame_rate"]["maximum"], fields["quality"]["default"]) == (120, 85)
    body = server.http.get("/v1/openapi.json").json()["paths"]["/v1/sessions/{session_id}/outputs"]["post"]
    mapping = body["requestBody"]["content"]["application/json"]["schema"]["discriminator"]["mapping"]
    assert [*mapping] == KINDS
    assert mapping["led_wall"].endswith("/LedWallRequest")


def test_the_page_shows_it_and_starts_it_by_its_address() -> None:
    first = outputs_script((*OUTPUT_KINDS, LED_WALL)).splitlines()[0]
    table = json.loads(first.removeprefix("const OUTPUT_KINDS = ").removesuffix(";"))
    assert table["titles"] == dict(zip(KINDS, TITLES, strict=True))
    assert table["schemes"] == {
        **{"rtmp": "rtmp", "rtmps": "rtmp", "srt": "srt", "http": "whip", "https": "whip"},
        "tcp": "led_wall",
    }


def test_without_the_row_there_is_no_such_kind() -> None:
    assert [kind.name for kind in OUTPUT_KINDS] == KINDS[:-1]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    expected = "led_wall-1: 10 pictures of {(192, 192)} pixels, sending to tcp://127.0.0.1:"
    assert capsys.readouterr().out.startswith(expected)
