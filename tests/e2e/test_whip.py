"""WHIP and WHEP with independent peers: the senders of FFmpeg and GStreamer, where they are installed.

FFmpeg speaks WHIP from version 8 on, Debian 12 has 5.1; PyAV's wheels carry a newer one. GStreamer's whipclientsink is
in gst-plugins-rs, which Debian 12 does not have; its webrtcbin is there, and a few lines of Python give it HTTP:
apt-get install python3-gi gir1.2-gst-plugins-bad-1.0 gstreamer1.0-{nice,plugins-good,plugins-bad,libav}.
(Debian 12's simple-whip-client ends at its start: it and libnice are linked with two versions of libsoup.)
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
import numpy as np
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.api.context import ApiContext
from app.api.errors import install_errors
from app.api.webrtc import routes as whip
from app.session.session import Session
from app.session.table import SessionTable
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionState
from pipelines.files.loader_options import LoaderOptions

COLOUR = (200, 60, 40)
ARGB = 255 << 24 | COLOUR[0] << 16 | COLOUR[1] << 8 | COLOUR[2]
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

TONE_HZ = 440
SENDER_WITH_SOUND = """
import sys, time
from fractions import Fraction
import av, numpy as np
url, token, cert, key = sys.argv[1:]
options = {"authorization": token, "handshake_timeout": "10000", "cert_file": cert, "key_file": key}
with av.open(url, "w", format="whip", options=options) as out:
    video = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "tune": "zerolatency", "bf": "0"})
    video.width, video.height, video.pix_fmt, video.codec_context.profile = 320, 240, "yuv420p", "Baseline"
    video.codec_context.gop_size = 15
    sound = out.add_stream("libopus", rate=48000, layout="stereo")
    for number in range(300):
        frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), COLOUR, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 30)
        time_s = (number * 1600 + np.arange(1600)) / 48000
        wave = (np.sin(2 * np.pi * TONE_HZ * time_s) * 10000).astype(np.int16)
        piece = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
        piece.sample_rate, piece.pts, piece.time_base = 48000, number * 1600, Fraction(1, 48000)
        for packet in [*video.encode(frame.reformat(format="yuv420p")), *sound.encode(piece)]:
            out.mux(packet)
        time.sleep(1 / 30)
""".replace("COLOUR", repr(COLOUR)).replace("TONE_HZ", repr(TONE_HZ))

GSTREAMER = """
import sys, threading, urllib.request
import gi
for name, version in (("Gst", "1.0"), ("GstWebRTC", "1.0"), ("GstSdp", "1.0")):
    gi.require_version(name, version)
from gi.repository import GLib, Gst, GstSdp, GstWebRTC
Gst.init(None)
role, url, token = sys.argv[1:]
VP8 = "application/x-rtp,media=video,encoding-name=VP8,payload=96,clock-rate=90000"
SOURCE = ("videotestsrc is-live=true pattern=solid-color foreground-color=ARGB ! videoconvert"
          " ! video/x-raw,format=I420,width=320,height=240,framerate=30/1 ! vp8enc deadline=1 keyframe-max-dist=15"
          " target-bitrate=1000000 ! rtpvp8pay pt=96 ! capsfilter caps=" + VP8)
SINK = "rtpvp8depay ! vp8dec ! videoconvert ! video/x-raw,format=RGB ! appsink name=out emit-signals=true sync=false"
pipeline = Gst.Pipeline.new()
peer = Gst.ElementFactory.make("webrtcbin", "peer")
peer.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
pipeline.add(peer)
kept = []

def offer(promise):
    kept.append(promise.get_reply())
    kept.append(kept[0].get_value("offer"))
    peer.emit("set-local-description", kept[1], Gst.Promise.new())

def gathered(*_):
    if peer.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        threading.Thread(target=send, args=(peer.get_property("local-description").sdp.as_text(),)).start()

def send(sdp):
    headers = {"Content-Type": "application/sdp", "Authorization": "Bearer " + token}
    with urllib.request.urlopen(urllib.request.Request(url, sdp.encode(), headers), timeout=20) as reply:
        _, message = GstSdp.SDPMessage.new_from_text(reply.read().decode())
    answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
    peer.emit("set-remote-description", answer, Gst.Promise.new())

def pad_added(_, pad):
    if pad.direction == Gst.PadDirection.SRC:
        sink = Gst.parse_bin_from_description(SINK, True)
        sink.get_by_name("out").connect("new-sample", sample)
        pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

def sample(out):
    taken = out.emit("pull-sample")
    shape = taken.get_caps().get_structure(0)
    print(shape.get_value("width"), shape.get_value("height"), *taken.get_buffer().extract_dup(0, 3), flush=True)
    return Gst.FlowReturn.OK

peer.connect("notify::ice-gathering-state", gathered)
peer.connect("on-negotiation-needed",
             lambda _: peer.emit("create-offer", None, Gst.Promise.new_with_change_func(offer)))
peer.connect("pad-added", pad_added)
if role == "whip":
    source = Gst.parse_bin_from_description(SOURCE, True)
    pipeline.add(source)
    source.get_static_pad("src").link(peer.request_pad_simple("sink_0"))
else:
    caps = Gst.Caps.from_string(VP8)
    peer.emit("add-transceiver", GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY, caps)
pipeline.set_state(Gst.State.PLAYING)
GLib.MainLoop().run()
""".replace("ARGB", str(ARGB))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SessionTable, str]]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=64, height=48))
    with WorkerHandle(options, max_sessions=2) as client, ThreadPoolExecutor(2) as codecs:
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
    while session.proxy.state is not SessionState.LIVE:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    yield session
    session.close()


def arrives(session: Session, sender: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for three pictures of the sent colour."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        found = session.proxy.newest()
        if found is not None and found[0] >= 3:
            pixel = [int(value) for value in found[1].image[24, 32]]
            if max(abs(a - b) for a, b in zip(pixel, COLOUR, strict=True)) <= TOLERANCE:
                return
        assert sender.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.02)


def certificate(folder: Path) -> tuple[str, str]:
    """Files of a certificate and its key, on P-256, which every WebRTC peer must support (RFC 8827, section 6.5).

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


@pytest.mark.alone
@pytest.mark.skipif("whip" not in av.formats_available, reason="PyAV's FFmpeg has no WHIP (from version 8 on)")
def test_ffmpeg_of_pyav_sends_sound_too(server: tuple[SessionTable, str], session: Session, tmp_path: Path) -> None:
    heard: list[tuple[np.ndarray, int]] = []
    session.sound.listen(lambda sound, at_ns: heard.append((sound.to_ndarray()[0, ::2], at_ns)))
    url = f"{server[1]}/sessions/{session.id}/whip"
    log, command = tmp_path / "sender.log", [sys.executable, "-c", SENDER_WITH_SOUND, url, session.token]
    with log.open("wb") as output:
        sender = subprocess.Popen([*command, *certificate(tmp_path)], stdout=output, stderr=output)
    try:
        arrives(session, sender, log)
        deadline_s = time.monotonic() + WAIT_S
        while len(heard) < 80:
            assert sender.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.02)
        now_ns = time.monotonic_ns()
    finally:
        sender.kill()
        sender.wait()
    samples = np.concatenate([piece for piece, _ in heard[20:70]])
    tone_hz = np.argmax(np.abs(np.fft.rfft(samples))) * 48_000 / len(samples)
    assert tone_hz == pytest.approx(TONE_HZ, abs=2)
    times_ns = np.array([at_ns for _, at_ns in heard[20:70]])
    assert now_ns - 5_000_000_000 < times_ns[0] < times_ns[-1] < now_ns
    assert (times_ns[-1] - times_ns[0]) / 1e9 == pytest.approx((len(samples) - len(heard[69][0])) / 48_000, abs=0.1)


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
    url = f"{server[1]}/sessions/{session.id}/whip"
    command = [
        *(launch, "videotestsrc", "is-live=true", "pattern=solid-color", f"foreground-color={ARGB}", "!"),
        *("video/x-raw,width=320,height=240,framerate=30/1", "!", "videoconvert", "!"),
        *("whipclientsink", f"signaller::whip-endpoint={url}", f"signaller::auth-token={session.token}"),
    ]
    send(command, session, tmp_path)


def gstreamer() -> list[str]:
    """Return how to run GSTREAMER; skips the test where it cannot run."""
    python = Path("/usr/bin/python3")  # the distribution's: PyGObject belongs to it
    check = (
        "import gi; gi.require_version('GstWebRTC', '1.0'); from gi.repository import Gst, GstWebRTC; Gst.init(None)"
    )
    check += "; assert all(map(Gst.ElementFactory.find, ('webrtcbin', 'nicesrc', 'dtlsdec', 'vp8enc', 'rtpvp8pay')))"
    if not python.exists() or subprocess.run([python, "-c", check], capture_output=True, check=False).returncode != 0:
        pytest.skip("GStreamer's webrtcbin or its Python binding is not installed")
    return [str(python), "-c", GSTREAMER]


def test_gstreamer_s_webrtcbin_sends_and_another_receives(
    server: tuple[SessionTable, str], session: Session, tmp_path: Path
) -> None:
    command, log = gstreamer(), tmp_path / "watcher.log"
    url = f"{server[1]}/sessions/{session.id}"
    watch = [*command, "whep", f"{url}/whep", session.token]
    with log.open("wb") as output, subprocess.Popen(watch, stdout=output, stderr=output) as watcher:
        try:
            send([*command, "whip", f"{url}/whip", session.token], session, tmp_path)
            deadline_s = time.monotonic() + WAIT_S
            while len(lines := [line.split() for line in log.read_text().splitlines() if line[0].isdigit()]) < 3:
                assert watcher.poll() is None, log.read_text()
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.05)
        finally:
            watcher.kill()
    width, height, *pixel = map(int, lines[-1])
    assert (width, height) == (64, 48)
    assert max(abs(a - b) for a, b in zip(pixel, COLOUR, strict=True)) <= 2 * TOLERANCE
