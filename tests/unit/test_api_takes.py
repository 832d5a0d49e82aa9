"""A take over HTTP: started and stopped with the session's token, inputs stored as received, rendered again."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
from websockets.sync.client import connect

from app.__main__ import main
from app.api.pictures import pack
from app.api.stream.messages import Hello, dump
from app.api.stream.wire import Header, PictureFormat, pack_header
from tests.fakes.api_server import api_server
from tests.fakes.stream_server import worker_client


def test_a_take_keeps_the_received_files_and_renders_to_the_same_frames(tmp_path: Path) -> None:
    with worker_client(max_sessions=1) as worker, api_server(worker, tmp_path / "data") as server:
        made = server.http.post("/v1/sessions", json={"prompt_only": False}).json()
        token = httpx.Headers({"Authorization": f"Bearer {made['token']}"})
        path = f"/v1/sessions/{made['id']}"
        assert server.http.post(f"{path}/take").status_code == 401
        assert server.http.get(f"{path}/take", headers=token).json() == {"take": None}
        address = str(server.http.base_url).replace("http", "ws").rstrip("/") + str(made["stream_url"])
        with connect(address, compression=None) as socket:
            socket.send(dump(Hello(token=str(made["token"]))))
            assert json.loads(socket.recv())["type"] == "ready"
            answer = server.http.post(f"{path}/take", headers=token)
            assert answer.status_code == 201, answer.text
            assert server.http.get(f"{path}/take", headers=token).json() == answer.json()
            for seq in range(3):
                image = np.full((24, 32, 3), 60 * seq + 20, np.uint8)
                header = Header(format=PictureFormat.JPEG, seq=seq, width=32, height=24)
                socket.send(pack_header(header) + pack(image, PictureFormat.JPEG, 90))
                frame = socket.recv(timeout=10)
                while isinstance(frame, str):
                    frame = socket.recv(timeout=10)
                socket.send(json.dumps({"type": "ack", "seq": int.from_bytes(frame[8:12], "little")}))
        assert server.http.delete(f"{path}/take", headers=token).status_code == 204
        assert server.http.get(f"{path}/take", headers=token).json() == {"take": None}
        folder = tmp_path / "data" / "takes" / answer.json()["take"]
        records = [json.loads(line) for line in (folder / "take.jsonl").read_text(encoding="utf-8").splitlines()]
        inputs = [record for record in records if record.get("kind") == "input"]
        assert len(inputs) == 3
        assert {record["format"] for record in inputs} == {"received"}
    assert main(["render", "--take", str(folder), str(tmp_path / "again")]) == 0
    assert len(list((tmp_path / "again").glob("*.png"))) == 3
