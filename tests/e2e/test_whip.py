"""WHIP with a sender that none of us wrote: FFmpeg's own, where the one that is installed has it.

FFmpeg speaks WHIP from version 8 on, Debian 12 has 5.1; PyAV's wheels carry a newer one. GStreamer's whipclientsink is
in gst-plugins-rs, which Debian 12 does not have.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import av
import fastapi
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.api import whip
from app.api.context import ApiContext
from app.api.errors import install_errors
from app.client_session import SessionState
from app.session import Session
from app.session_table import SessionTable
from app.worker import WorkerOptions
from app.worker_client import WorkerClient

COLOUR = (200, 60, 40)
TOLERANCE = 12
WAIT_S = 40.0
SENDER = """
import sys, time
from fractions import Fraction
import av, numpy as np
url, token, cert, key = sys.argv[1:]
options = {"authorization": token, "handshake_timeout": "10000", "cert_file": cert, "key_file": key}
with av.open(url, "w", format="whip", options=options) as out:
    video = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "tune": "zerolatency", "bf": "0"})
    video.width, video.height, video.pix_fmt, video.codec_context.profile = 320, 240, "yuv420p", "Baseline"
    video.codec_context.gop_size = 15
    for number in range(300):
        frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), COLOUR, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 30)
        for packet in video.encode(frame.reformat(format="yuv420p")):
            out.mux(packet)
        time.sleep(1 / 30)
""".replace("COLOUR", repr(COLOUR))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SessionTable, str]]:
    options = WorkerOptions(model="identity", engine={"width": 64, "height": 48})
    with WorkerClient(options, max_sessions=2) as client, ThreadPoolExecutor(2) as codecs:
        client.wait_ready(60)
        table = SessionTable(client)
        folder = tmp_path_factory.mktemp("data")
        context = ApiContext(table=table, codecs=codecs, data=folder, model="identity")
        app = fastapi.FastAPI()
        install_errors(app, context)
        app.include_router(whip.router(context))
        running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
        thread = threading.Thread(target=running.run)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        port = running.servers[0].sockets[0].getsockname()[1]
        yield table, f"http://127.0.0.1:{port}/v1"
        running.should_exit = True
        thread.join()
        table.stop()


@pytest.fixture
def session(server: tuple[SessionTable, str]) -> Iterator[Session]:
    session = server[0].open(prompt_only=False)
    deadline_s = time.monotonic() + 20
    while session.stream.state is not SessionState.LIVE:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    yield session
    session.close()


def arrives(session: Session, sender: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for three pictures of the colour that is sent."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        found = session.stream.newest()
        if found is not None and found[0] >= 3:
            pixel = [int(value) for value in found[1].image[24, 32]]
            if max(abs(a - b) for a, b in zip(pixel, COLOUR, strict=True)) <= TOLERANCE:
                return
        assert sender.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.02)


def certificate(folder: Path) -> tuple[str, str]:
    """Files of a certificate and its key, on P-256, which every WebRTC peer has to know (RFC 8827, section 6.5).

    FFmpeg's own one is on P-224 where it was built with GnuTLS; OpenSSL, which aiortc uses, does not take that.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sender")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return str(files[0]), str(files[1])


def send(command: list[str], session: Session, tmp_path: Path) -> None:
    log = tmp_path / "sender.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as sender:
        try:
            arrives(session, sender, log)
        finally:
            sender.kill()


@pytest.mark.skipif("whip" not in av.formats_available, reason="PyAV's FFmpeg has no WHIP (from version 8 on)")
def test_ffmpeg_of_pyav_sends_by_whip(server: tuple[SessionTable, str], session: Session, tmp_path: Path) -> None:
    url = f"{server[1]}/sessions/{session.id}/whip"
    send([sys.executable, "-c", SENDER, url, session.token, *certificate(tmp_path)], session, tmp_path)


def test_the_ffmpeg_command_sends_by_whip(server: tuple[SessionTable, str], session: Session, tmp_path: Path) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("no ffmpeg command is installed")
    muxers = subprocess.run([ffmpeg, "-hide_banner", "-muxers"], capture_output=True, text=True, check=True).stdout
    if " whip " not in muxers:
        pytest.skip("the installed ffmpeg has no WHIP (from version 8 on)")
    red, green, blue = COLOUR
    cert, key = certificate(tmp_path)
    command = [
        *(ffmpeg, "-re", "-f", "lavfi", "-i", f"color=0x{red:02x}{green:02x}{blue:02x}:s=320x240:r=30"),
        *("-c:v", "libx264", "-profile:v", "baseline", "-tune", "zerolatency", "-pix_fmt", "yuv420p", "-g", "15"),
        *("-f", "whip", "-authorization", session.token, "-cert_file", cert, "-key_file", key),
        f"{server[1]}/sessions/{session.id}/whip",
    ]
    send(command, session, tmp_path)


def test_gstreamer_sends_by_whip(server: tuple[SessionTable, str], session: Session, tmp_path: Path) -> None:
    launch, inspect = shutil.which("gst-launch-1.0"), shutil.which("gst-inspect-1.0")
    if launch is None or inspect is None:
        pytest.skip("GStreamer is not installed")
    if subprocess.run([inspect, "whipclientsink"], capture_output=True, check=False).returncode != 0:
        pytest.skip("GStreamer has no whipclientsink (gst-plugins-rs)")
    red, green, blue = COLOUR
    colour = (255 << 24) | (red << 16) | (green << 8) | blue
    url = f"{server[1]}/sessions/{session.id}/whip"
    command = [
        *(launch, "videotestsrc", "is-live=true", "pattern=solid-color", f"foreground-color={colour}", "!"),
        *("video/x-raw,width=320,height=240,framerate=30/1", "!", "videoconvert", "!"),
        *("whipclientsink", f"signaller::whip-endpoint={url}", f"signaller::auth-token={session.token}"),
    ]
    send(command, session, tmp_path)
