"""Candidates of a WebRTC client: how many, and which addresses the server may be made to send to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.webrtc.candidates import may_send_to, usable_candidates
from app.webrtc.options import WebRtcOptions
from app.worker.handle import WorkerHandle
from tests.fakes.stream_server import worker_client
from tests.fakes.webrtc_peers import FlatVideo, TestPeer
from tests.fakes.webrtc_server import Server, serve

LINE = "a=candidate:{number} 1 udp 2130706431 {host} 5000 typ host"


@pytest.mark.parametrize(
    ("host", "for_others", "for_this_machine"),
    [
        ("192.0.2.1", True, True),
        ("10.0.0.1", True, True),
        ("2001:db8::1", True, True),
        ("0e1f-4a.local", True, True),
        ("127.0.0.1", False, True),
        ("127.9.9.9", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("169.254.169.254", False, True),
        ("fe80::1", False, True),
        ("fe80::1%eth0", False, True),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.251", False, False),
        ("ff02::fb", False, False),
        ("255.255.255.255", False, False),
        ("localhost", False, False),
        ("metadata.internal", False, False),
    ],
)
def test_addresses(host: str, for_others: bool, for_this_machine: bool) -> None:
    assert may_send_to(host, local=False) == for_others
    assert may_send_to(host, local=True) == for_this_machine


def test_a_description_keeps_all_but_what_leads_nowhere() -> None:
    hosts = ("192.0.2.1", "127.0.0.1", "fe80::1", "2001:db8::1")
    lines = [LINE.format(number=i, host=host) for i, host in enumerate(hosts)]
    text = "\r\n".join(("v=0", "m=video 9 UDP/TLS/RTP/SAVPF 96", *lines, "a=end-of-candidates", ""))
    kept, count = usable_candidates(text, local=False)
    assert count == 4
    assert kept == "\r\n".join(("v=0", "m=video 9 UDP/TLS/RTP/SAVPF 96", lines[0], lines[3], "a=end-of-candidates", ""))
    assert usable_candidates(text, local=True) == (text, 4)
    assert usable_candidates(text.replace("\r\n", "\n"), local=False)[1] == 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with worker_client() as worker:
        yield from _served(worker, tmp_path_factory.mktemp("data"))


def _served(worker: WorkerHandle, folder: Path) -> Iterator[Server]:
    yield from serve(worker, folder, WebRtcOptions(candidates=6))


@pytest.mark.parametrize("media", [1, 3])
def test_an_offer_and_what_comes_later_share_one_limit(server: Server, media: int) -> None:
    async def scene() -> None:
        session = server.open()
        headers = {"Authorization": f"Bearer {session.token}", "Content-Type": "application/sdp"}
        path = f"/sessions/{session.id}/webrtc"
        peer = TestPeer(gives=FlatVideo((1, 2, 3)), takes=True, control=media > 1)
        lines = [line for line in (await peer.offer()).split("\r\n") if not line.startswith("a=candidate")]
        places = [number for number, line in enumerate(lines) if line.startswith("a=ice-pwd")]

        def offer(count: int) -> str:
            text = list(lines)
            for i in range(count):
                text.insert(places[i % len(places)], LINE.format(number=i, host=f"192.0.2.{i + 1}"))
            return "\r\n".join(text)

        async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
            refused = await http.post(path, content=offer(7), headers=headers)
            assert (refused.status_code, refused.json()["error"]["message"]) == (400, "Too many candidates.")
            assert refused.json()["error"]["remedy"] == "Send at most 6."
            answer = await http.post(path, content=offer(6), headers=headers)
            assert answer.status_code == 201, answer.text
            later = {
                **headers,
                "Content-Type": "application/trickle-ice-sdpfrag",
                "If-Match": answer.headers["etag"],
            }
            address = answer.headers["location"].removeprefix("/v1")
            one_more = LINE.format(number=9, host="192.0.2.99") + "\r\n"
            assert (await http.patch(address, content=one_more, headers=later)).status_code == 400
        await peer.close()
        session.close()

    asyncio.run(scene())
