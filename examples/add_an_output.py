"""An output in one file and one row: the frames as JPEG pictures over TCP, to an LED wall that the client names.

    python examples/add_an_output.py

serves the identity model, starts the output over HTTP and receives what it sends. To have it in the program itself, put
the classes into app/outputs/ and the row into OUTPUT_KINDS of app/outputs/kinds.py; nothing else changes.
"""

import socket
import struct
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import simplejpeg  # type: ignore[import-untyped]
from fastapi.testclient import TestClient
from pydantic import Field

from app.api.context import ApiContext
from app.api.routes import include_all, new_application
from app.outputs.kinds import OUTPUT_KINDS, FrameRate
from app.outputs.output import OutputPhase, OutputReading
from app.outputs.output_kind import OutputKind, OutputRequest, OutputSetting
from app.outputs.pacing import PacedFrames
from app.outputs.push_hosts import PushHosts
from app.session.table import SessionTable
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from pipelines.core.types import Frame

LENGTH = struct.Struct(">I")
"""Before each JPEG: how many bytes it has."""
_TIMEOUT_S = 5.0


class LedWallRequest(OutputRequest):
    """Send JPEG pictures to an LED wall over TCP, each after its length in four bytes, big-endian."""

    kind: Literal["led_wall"]
    address: Annotated[str, Field(pattern=r"^tcp://[A-Za-z0-9][A-Za-z0-9.-]{0,252}:[1-9][0-9]{0,4}$")]
    frame_rate: FrameRate = 30
    quality: Annotated[int, Field(ge=1, le=100, description="Of JPEG.")] = 85


class LedWall:
    """A running output: it connects with the first frame, and fails alone when the wall goes away."""

    def __init__(self, wanted: LedWallRequest) -> None:
        self._wanted = wanted
        host, _, port = wanted.address.removeprefix("tcp://").partition(":")
        self._address = (host, int(port))
        self._frames = PacedFrames(Fraction(wanted.frame_rate))
        self._phase, self._text, self._sent = OutputPhase.STARTING, "waits for the first frame", 0
        self._thread = threading.Thread(target=self._run, name="led-wall", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        """The newest frame wins; one that was never sent counts as dropped."""
        self._frames.offer(frame)

    def read(self) -> OutputReading:
        """Its state at this moment."""
        dropped = self._frames.replaced
        return OutputReading(kind="LED wall", phase=self._phase, done=self._sent, dropped=dropped, text=self._text)

    def stop(self) -> None:
        """Send nothing more."""
        self._frames.close()
        self._thread.join(_TIMEOUT_S)

    def _run(self) -> None:
        try:
            if self._frames.first() is not None:
                self._send()
            self._phase, self._text = OutputPhase.STOPPED, f"sent {self._sent} pictures"
        except (OSError, OverflowError) as error:  # a port above 65535 is the latter
            self._frames.close()
            self._phase, self._text = OutputPhase.FAILED, f"{self._wanted.address} ended: {error}"

    def _send(self) -> None:
        with socket.create_connection(self._address, _TIMEOUT_S) as wall:
            self._phase, self._text = OutputPhase.RUNNING, f"sending to {self._wanted.address}"
            self._frames.restart()
            while (ticked := self._frames.next()) is not None:
                jpeg = simplejpeg.encode_jpeg(ticked[1], quality=self._wanted.quality)
                wall.sendall(LENGTH.pack(len(jpeg)) + jpeg)
                self._sent += 1


def led_wall(wanted: LedWallRequest, setting: OutputSetting) -> LedWall:
    """Only where the operator allows it: the server must not be a way into the network behind it."""
    setting.push_hosts.check(wanted.address)
    return LedWall(wanted)


LED_WALL = OutputKind(request=LedWallRequest, make=led_wall, title="LED wall", schemes=("tcp",))  # the row


def receive(sender: socket.socket, pictures: int) -> list[bytes]:
    """What a wall does: read so many JPEGs of a connection."""
    with sender.makefile("rb") as stream:
        return [stream.read(*LENGTH.unpack(stream.read(LENGTH.size))) for _ in range(pictures)]


def main() -> None:
    """Ten pictures of a session that runs from its prompt alone."""
    with (
        tempfile.TemporaryDirectory() as data,
        ThreadPoolExecutor(2) as codecs,
        socket.create_server(("127.0.0.1", 0)) as wall,
        WorkerHandle(WorkerOptions(model="identity")) as worker,
    ):
        worker.wait_ready(60)
        table = SessionTable(worker)
        context = ApiContext(
            table=table,
            codecs=codecs,
            data=Path(data),
            model="identity",
            push_hosts=PushHosts(any_host=True),
            outputs=(*OUTPUT_KINDS, LED_WALL),
        )
        application = new_application()
        include_all(application, context)
        with TestClient(application) as http:
            session = http.post("/v1/sessions", json={}).json()
            path, token = f"/v1/sessions/{session['id']}/outputs", {"Authorization": f"Bearer {session['token']}"}
            address = f"tcp://127.0.0.1:{wall.getsockname()[1]}"
            wanted = {"kind": "led_wall", "address": address, "frame_rate": 60}
            output = http.post(path, headers=token, json=wanted).json()
            with wall.accept()[0] as sender:
                sizes = [simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in receive(sender, 10)]
                (listed,) = http.get(path, headers=token).json()["outputs"]
            http.delete(f"{path}/{output['id']}", headers=token)
        table.stop()
    sys.stdout.write(f"{listed['id']}: {len(sizes)} pictures of {set(sizes)} pixels, {listed['text']}\n")


if __name__ == "__main__":
    main()
