"""WebRTC: pictures through a session and back, controls on the data channel, WHIP and WHEP by the standard, no leaks.

A real worker with the identity engine, a real server in a thread, Python peers without ICE servers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.outputs.whip_push import PushRefusedError, PushState, WhipPush, WhipPushOptions
from app.session.session import Session
from app.webrtc.options import IceServer, WebRtcOptions
from app.worker.handle import WorkerHandle
from app.worker.messages import WorkerNotice
from app.worker.process import WorkerOptions
from pipelines.core.errors import InputError
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.webrtc_peers import FlatVideo, TestPeer, until
from tests.fakes.webrtc_server import Server, serve

RED, BLUE = (200, 40, 40), (30, 60, 190)
TOLERANCE = 8  # of a flat colour through two codecs and two conversions to YUV at 8 bits
TURN = IceServer(urls=("turn:127.0.0.1:9",), username='a "b"', credential="s3cret")


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=64, height=48))
    with WorkerHandle(options, max_sessions=4) as client:
        client.wait_ready(60)
        yield client


@pytest.fixture(scope="module")
def server(worker: WorkerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(worker, tmp_path_factory.mktemp("data"), None)


@pytest.fixture(scope="module")
def codecs() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as codecs:
        yield codecs


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    session = server.open()
    yield session
    session.close()


def play(scene: Callable[[httpx.AsyncClient], Awaitable[None]], url: str) -> None:
    """Run a scene on a new event loop, which must have no tasks left afterwards."""

    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            await scene(http)
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(run())


def sdp_headers(session: Session | None = None) -> dict[str, str]:
    token = {"Authorization": f"Bearer {session.token}"} if session is not None else {}
    return {"Content-Type": "application/sdp", **token}


async def join(http: httpx.AsyncClient, peer: TestPeer, session: Session, role: str) -> httpx.Response:
    answer = await http.post(f"/sessions/{session.id}/{role}", content=await peer.offer(), headers=sdp_headers(session))
    assert answer.status_code == 201, answer.text
    await peer.accept(answer.text)
    return answer


def test_pictures_go_in_and_come_back_and_the_channel_controls(
    server: Server, session: Session, worker: WorkerHandle
) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        video = FlatVideo(RED)
        peer = TestPeer(gives=video, takes=True, control=True)
        await join(http, peer, session, "webrtc")
        await peer.sees(RED, TOLERANCE)
        video.colour = BLUE
        await peer.sees(BLUE, TOLERANCE)
        assert peer.sizes == {(64, 48)}
        assert peer.pts == sorted(set(peer.pts))
        ready = await peer.hears("ready")
        assert (ready["version"], ready["session"]) == (1, session.id)
        peer.say(type="control", id=7, changes={"strength": 0.25})
        assert (await peer.hears("applied"))["id"] == 7
        assert session.proxy.control.strength == 0.25
        peer.say(type="control", id=8, changes={"strength": 7})
        refused = await peer.hears("error")
        assert (refused["id"], refused["code"]) == (8, "bad_control")
        peer.say(type="ping", id=9, at_ms=1.5)
        pong = await peer.hears("pong")
        assert (pong["id"], pong["at_ms"]) == (9, 1.5)
        peer.say(type="nonsense")
        assert (await peer.hears("error"))["code"] == "bad_message"
        worker._handle(WorkerNotice(text="A small autoencoder is used."))
        assert (await peer.hears("notice"))["text"] == "A small autoencoder is used."
        session.proxy.notify("Output ended: no room.")  # an error, not a notice
        refused = await peer.hears("error")
        assert (refused["id"], refused["code"], refused["message"]) == (None, "bad_control", "Output ended: no room.")
        peer.messages.clear()  # figures from before the first picture
        stats = await peer.hears("stats")
        assert isinstance(stats["accounting"], dict)
        assert stats["accounting"]["in"] > 0
        assert session.read().connections == 1
        session.close()
        assert "closed" in str((await peer.hears("ended"))["message"])
        await until(lambda: peer.connection.connectionState == "closed")
        await peer.close()

    play(scene, server.url)


def test_one_sends_by_whip_and_another_watches_by_whep(server: Server, session: Session) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        giver, watcher = TestPeer(gives=FlatVideo(BLUE)), TestPeer(takes=True)
        given = await join(http, giver, session, "whip")
        assert given.headers["content-type"] == "application/sdp"
        assert given.headers["location"].startswith(f"/v1/sessions/{session.id}/whip/")
        assert given.headers["etag"].startswith('"')
        await join(http, watcher, session, "whep")
        await watcher.sees(BLUE, TOLERANCE)
        assert session.read().connections == 2
        address = given.headers["location"].removeprefix("/v1")
        assert (await http.delete(address)).status_code == 401
        assert (await http.delete(address.replace("/whip/", "/whep/"), headers=sdp_headers(session))).status_code == 404
        assert (await http.delete(address, headers=sdp_headers(session))).status_code == 200
        assert (await http.delete(address, headers=sdp_headers(session))).status_code == 404
        await until(lambda: session.read().connections == 1)
        assert not session.over
        await giver.close()
        await watcher.close()
        await until(lambda: session.read().connections == 0)

    play(scene, server.url)


def test_whip_opens_a_session_and_ends_it(server: Server) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        peer = TestPeer(gives=FlatVideo(RED))
        answer = await http.post("/whip", content=await peer.offer(), headers=sdp_headers())
        assert answer.status_code == 201
        await peer.accept(answer.text)
        session = server.table.authorised(answer.headers["zoetrope-session"], answer.headers["zoetrope-token"])
        await until(lambda: session.proxy.count > 0)
        assert (await http.delete(answer.headers["location"].removeprefix("/v1"))).status_code == 200
        assert session.over
        await peer.close()

    play(scene, server.url)


def test_a_peer_that_vanishes_leaves_its_session_to_the_grace_time(
    server: Server, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.05)

    async def scene(http: httpx.AsyncClient) -> None:
        peer = TestPeer(gives=FlatVideo(RED), takes=True)
        await join(http, peer, session, "webrtc")
        await peer.sees(RED, TOLERANCE)
        for transceiver in peer.connection.getTransceivers():  # gone without a word: nothing is sent any more
            ice = transceiver.receiver.transport.transport._connection
            for protocol in ice._protocols:
                protocol.transport.abort()
        await until(lambda: session.read().connections == 0)
        assert not session.over
        assert session.unused_s(time.monotonic()) < 5
        await peer.close()

    play(scene, server.url)


def test_bad_requests_are_refused_and_leave_nothing(server: Server, session: Session) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        peer, silent = TestPeer(gives=FlatVideo(RED)), TestPeer(control=True)
        offer, path, good = await peer.offer(), f"/sessions/{session.id}/whip", sdp_headers(session)
        sound = await silent.offer()
        cases = (
            (offer, {**good, "Authorization": "Bearer wrong"}, 401, "unauthorised"),
            (offer, sdp_headers(), 401, "unauthorised"),
            (offer, {**good, "Content-Type": "text/plain"}, 415, "bad_input"),
            (offer, {**good, "Accept": "application/json"}, 406, "bad_input"),
            ("v=0\r\n" + "a=x\r\n" * 20000, good, 413, "too_large"),
            ("", good, 400, "bad_input"),
            ("m=video nonsense", good, 400, "bad_input"),
            (b"\xff\xfe", good, 400, "bad_input"),
            (offer.replace("a=ice-pwd", "a=ice-pud"), good, 400, "bad_input"),
            (offer.replace("a=fingerprint", "a=fungerprint"), good, 400, "bad_input"),
            (offer.replace("a=setup:actpass\r\n", ""), good, 400, "bad_input"),
            (offer.replace("a=rtcp-mux\r\n", ""), good, 400, "bad_input"),
            (offer.replace("VP8", "VP7").replace("H264", "H263"), good, 400, "bad_input"),
            (offer.replace("a=sendonly", "a=recvonly"), good, 400, "bad_input"),
            (sound, good, 400, "bad_input"),
        )
        for body, headers, status, code in cases:
            answer = await http.post(path, content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (body[:40], answer.text)
            assert session.read().connections == 0
        assert (await http.get(path, headers=good)).status_code == 405
        before = len(server.table.sessions)
        assert (await http.post("/whip", content="nonsense", headers=sdp_headers())).status_code == 400
        assert len(server.table.sessions) == before
        await peer.close()
        await silent.close()

    play(scene, server.url)


def test_candidates_may_come_later(server: Server, session: Session) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        peer = TestPeer(gives=FlatVideo(RED), takes=True)
        offer = await peer.offer()
        lines = offer.split("\r\n")
        later = [line for line in lines if line.startswith(("a=candidate", "a=end-of-candidates"))]
        assert later
        early = "\r\n".join(line for line in lines if line not in later)
        answer = await http.post(f"/sessions/{session.id}/webrtc", content=early, headers=sdp_headers(session))
        assert answer.status_code == 201, answer.text
        await peer.accept(answer.text)
        ufrag = next(line for line in lines if line.startswith("a=ice-ufrag"))
        mid = next(line for line in lines if line.startswith("a=mid"))
        fragment = "\r\n".join((ufrag, "m=video 9 UDP/TLS/RTP/SAVPF 0", mid, *dict.fromkeys(later), ""))
        address = answer.headers["location"].removeprefix("/v1")
        good = {
            **sdp_headers(session),
            "Content-Type": "application/trickle-ice-sdpfrag",
            "If-Match": answer.headers["etag"],
        }
        for headers, body, status in (
            ({**good, "Content-Type": "application/sdp"}, fragment, 415),
            ({**good, "If-Match": '"other"'}, fragment, 412),
            ({**good, "If-Match": "{}"}, fragment, 400),
            ({**good, "If-Match": ""}, fragment, 400),
            ({**good, "If-Match": "*"}, fragment, 422),
            ({name: value for name, value in good.items() if name != "If-Match"}, fragment, 428),
            (good, fragment.replace(ufrag, "a=ice-ufrag:other"), 422),
            (good, "a=candidate:1", 400),
            (good, fragment, 204),
        ):
            patched = await http.patch(address, content=body, headers=headers)
            assert patched.status_code == status, patched.text
        await peer.sees(RED, TOLERANCE)
        await peer.close()

    play(scene, server.url)


def test_the_number_of_peers_is_limited(worker: WorkerHandle, tmp_path: Path) -> None:
    servers = serve(worker, tmp_path, WebRtcOptions(peers_per_session=2))
    server = next(servers)
    session = server.open()

    async def scene(http: httpx.AsyncClient) -> None:
        peers = [TestPeer(takes=True) for _ in range(3)]
        path = f"/sessions/{session.id}/whep"
        answers = [await http.post(path, content=await peer.offer(), headers=sdp_headers(session)) for peer in peers]
        assert [answer.status_code for answer in answers] == [201, 201, 503]
        assert answers[2].json()["error"]["code"] == "busy"
        assert int(answers[2].headers["retry-after"]) > 0
        for peer in peers:
            await peer.close()

    play(scene, server.url)
    with pytest.raises(StopIteration):  # shuts down while two peers are still being connected
        next(servers)
    assert session.over


def test_ice_servers_are_told_to_who_has_a_token(worker: WorkerHandle, tmp_path: Path) -> None:
    servers = serve(worker, tmp_path, WebRtcOptions(ice_servers=(TURN,)))
    server = next(servers)
    session = server.open()

    async def scene(http: httpx.AsyncClient) -> None:
        path = f"/sessions/{session.id}/whep"
        told = await http.options(path, headers=sdp_headers(session))
        assert (told.status_code, told.headers["accept-post"]) == (204, "application/sdp")
        link = '<turn:127.0.0.1:9>; rel="ice-server"; username="a \\"b\\""; credential="s3cret"'
        assert told.headers["link"].startswith(link)
        assert "link" not in (await http.options(path)).headers
        wrong = await http.options(path, headers={"Authorization": "Bearer wrong"})
        assert (wrong.status_code, "link" in wrong.headers) == (401, False)

    play(scene, server.url)
    with pytest.raises(StopIteration):
        next(servers)


def test_many_peers_leave_no_threads(server: Server, session: Session) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        for _ in range(3):
            peer = TestPeer(gives=FlatVideo(RED), takes=True)
            await join(http, peer, session, "webrtc")
            await peer.sees(RED, TOLERANCE)
            await peer.close()
            await until(lambda: session.read().connections == 0)

    play(scene, server.url)
    deadline_s = time.monotonic() + 10
    while any("decoder" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_pushed_session_arrives_and_comes_back_after_a_loss(
    server: Server, session: Session, codecs: ThreadPoolExecutor
) -> None:
    async def scene(http: httpx.AsyncClient) -> None:
        target = server.open()
        options = WhipPushOptions(
            url=f"{server.url}/sessions/{target.id}/whip", token=target.token, first_wait_s=0.05, max_wait_s=0.1
        )
        assert target.token not in repr(options)
        push = WhipPush(session, codecs, options)
        pushing = asyncio.create_task(push.run())
        giver, watcher = TestPeer(gives=FlatVideo(BLUE)), TestPeer(takes=True)
        await join(http, giver, session, "whip")
        await join(http, watcher, target, "whep")
        await watcher.sees(BLUE, 2 * TOLERANCE)  # the codecs of two more connections
        assert (push.state, push.connections) == (PushState.LIVE, 1)
        assert push.address is not None
        assert (
            await http.delete(push.address, headers=sdp_headers(target))
        ).status_code == 200  # the far side hangs up
        await until(lambda: push.connections == 2)
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        assert push.state is PushState.ENDED
        await until(lambda: target.read().connections == 1)  # the watcher
        await giver.close()
        await watcher.close()
        target.close()

    play(scene, server.url)


def test_a_push_that_is_refused_says_so_and_one_without_a_server_tries_again(
    server: Server, session: Session, codecs: ThreadPoolExecutor
) -> None:
    async def scene(_: httpx.AsyncClient) -> None:
        wrong = WhipPushOptions(url=f"{server.url}/sessions/{session.id}/whip", token="wrong")
        with pytest.raises(PushRefusedError, match="refused the stream \\(401\\)"):
            await WhipPush(session, codecs, wrong).run()
        nobody = WhipPushOptions(url="http://127.0.0.1:9/whip", first_wait_s=0.01, max_wait_s=0.02)
        push = WhipPush(session, codecs, nobody)
        pushing = asyncio.create_task(push.run())
        await until(lambda: push.trouble == "ConnectError" and push.state is PushState.WAITING)
        session.close()
        await pushing
        assert (push.state, push.connections) == (PushState.ENDED, 0)

    play(scene, server.url)
    for url in ("rtmp://host/x", "https://", "file:///etc/passwd", "https://me:secret@host/whip"):
        with pytest.raises(InputError, match="WHIP address"):
            WhipPushOptions(url=url)


def test_options_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="give min <= start <= max"):
        WebRtcOptions(start_kbps=10, min_kbps=20)
    with pytest.raises(ValueError, match="choose from H264, VP8"):
        WebRtcOptions(codecs=("AV1",))
    with pytest.raises(ValueError, match="is not an ICE server"):
        IceServer(urls=("http://example.org",))
    assert "s3cret" not in repr(WebRtcOptions(ice_servers=(TURN,)))
