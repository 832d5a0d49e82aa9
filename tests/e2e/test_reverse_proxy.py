"""The examples of docs/proxy.md with the real nginx and Caddy: the API and the page behind a path of theirs."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from app.client import ZoetropeClient
from app.client.errors import UnauthorisedClientError
from app.guard.rules import GuardOptions
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.live_process import wait_for
from tests.fakes.stream_server import worker_client

DOCUMENT = Path(__file__).parents[2] / "docs" / "proxy.md"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = "/zoetrope"
TOKEN = "correct-horse-battery"
PROXIES = ("nginx", "caddy")


def blocks(language: str) -> list[str]:
    """The document's examples."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def upstream(text: str, port: int, *, strip: bool) -> str:
    """The example with the test's server, as printed or the other way round: with or without the path."""
    text = text.replace("127.0.0.1:7860", f"127.0.0.1:{port}")
    if strip:
        return text.replace(f"127.0.0.1:{port};", f"127.0.0.1:{port}/;")
    return text.replace("handle_path", "handle")


def nginx(folder: Path, port: int, server_port: int, *, strip: bool) -> list[str]:
    """The command; its configuration is the example within the smallest frame that nginx takes."""
    headers, location = blocks("nginx")
    bodies = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in bodies)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{paths}{headers}"
        f"server {{ listen 127.0.0.1:{port};\n{upstream(location, server_port, strip=strip)} }} }}\n"
    )
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, server_port: int, *, strip: bool) -> list[str]:
    """The command; the example's host name becomes a local http address."""
    (site,) = blocks("caddy")
    assert site.startswith("example.org {")
    site = site.replace("example.org {", f"http://127.0.0.1:{port} {{", 1)
    (folder / "Caddyfile").write_text("{\n admin off\n}\n" + upstream(site, server_port, strip=strip))
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


COMMANDS: dict[str, Callable[..., list[str]]] = {"nginx": nginx, "caddy": caddy}


@contextmanager
def proxy(name: str, folder: Path, server_port: int, *, strip: bool = True) -> Iterator[str]:
    """Run the proxy in front of the server. Yields its address with the path."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip(f"no {name} on this machine: apt-get install {name}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = COMMANDS[name](folder, port, server_port, strip=strip)
    environment = {"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *command[1:]], stdout=log, stderr=log, env=environment)
        try:
            wait_for(lambda: process.poll() is not None or _listens(port))
            assert process.poll() is None, (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}{ROOT}"
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    options = GuardOptions(port=1, hosts=frozenset({"127.0.0.1:*"}), token=TOKEN)  # --allow-host 127.0.0.1
    folder = tmp_path_factory.mktemp("data")
    with worker_client() as worker, api_server(worker, folder, guard=options, root_path=ROOT) as made:
        yield made


@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "kept"])
@pytest.mark.parametrize("name", PROXIES)
def test_programs_reach_the_api_through_the_example(server: ApiServer, tmp_path: Path, name: str, strip: bool) -> None:
    async def stream(url: str) -> None:
        async with ZoetropeClient(url, token=TOKEN) as client, client.stream(picture_format="rgb") as stream:
            for value in (1, 2, 3):
                picture = np.full((24, 32, 3), value, np.uint8)
                await stream.send(picture)
                assert ((await anext(stream)).image == picture).all()

    async def refused(url: str) -> None:
        async with ZoetropeClient(url, token="x" * 20) as client:
            with pytest.raises(UnauthorisedClientError):
                await client.models()

    with proxy(name, tmp_path, int(server.url.rpartition(":")[2]), strip=strip) as url:
        asyncio.run(stream(url))
        asyncio.run(refused(url))
        origin = url.removesuffix(ROOT)
        with httpx.Client(base_url=origin, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            assert http.get(ROOT, follow_redirects=True).request.url.path == f"{ROOT}/"
            made = http.post(f"{ROOT}/v1/sessions", json={"prompt_only": True}).json()
            with http.stream("GET", made["mjpeg_url"]) as video:  # not buffered: the first pictures come at once
                parts = video.iter_raw()
                assert b"--" in next(parts)
                assert next(parts)
            token = {"Authorization": f"Bearer {made['token']}"}
            assert http.options(made["whip_url"], headers=token).headers["accept-post"] == "application/sdp"
            files = {"options": (None, "{}"), "video": ("v.mp4", bytes(2 << 20))}  # above nginx's own limit of 1 MiB
            job = http.post(f"{ROOT}/v1/jobs", files=files)
            assert job.status_code != 413, job.text
            assert http.delete(f"{ROOT}/v1/sessions/{made['id']}", headers=token).status_code == 204
            page = {"accept": "text/html", "authorization": ""}
            signed = http.get(f"{ROOT}/?token={TOKEN}", headers=page)
            assert signed.headers["location"] == f"{ROOT}/"
            assert f"Path={ROOT}/;" in signed.headers["set-cookie"]


@pytest.mark.soak
@pytest.mark.parametrize("name", PROXIES)
def test_the_page_has_its_style_and_streams_behind_the_example(tmp_path: Path, name: str) -> None:
    pytest.importorskip("websockets", reason="the browser is driven over websockets: pip install '.[test]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from bench.live_page import serving
    from tests.e2e.browser import browse

    options = ("--token", TOKEN, "--allow-host", "127.0.0.1", "--root-path", ROOT, "--data", str(tmp_path))
    with (
        serving("identity", "128x96", *options) as local,
        proxy(name, tmp_path, urlsplit(local).port or 0) as url,
        browse(CHROMIUM, f"{url}/?token={TOKEN}") as page,
    ):
        state = "document.querySelector('.zt-stage')?.dataset.state"
        page.until(f"{state} === 'ready'", 60)
        assert page.evaluate("location.pathname + location.search") == f"{ROOT}/"
        corner = "getComputedStyle(document.querySelector('.zt-stage')).borderTopLeftRadius"
        assert page.evaluate(corner) == "14px"  # the page's own style
        variable = "getComputedStyle(document.documentElement).getPropertyValue('--primary-500').trim()"
        assert page.evaluate(variable) != ""  # the theme's
        for transport in ("websocket", "webrtc"):
            page.evaluate(f"window.zoetrope.setTransport('{transport}').then(() => window.zoetrope.choose('camera'))")
            page.evaluate("window.zoetrope.start()")
            number = "Number(document.querySelector('.zt-picture').dataset.number || 0)"
            seen = page.evaluate(number)
            page.until(f"{number} > {seen} + 20 && {state} === 'live'", 60)
            page.screenshot(tmp_path / f"proxy-{name}-{transport}.png")
            page.evaluate("window.zoetrope.stop()")
        origin = url.removesuffix(ROOT)
        strays = {address for address in page.urls if address.startswith(origin) and ROOT not in address}
        assert strays <= {f"{origin}/manifest.json", f"{origin}/favicon.ico"}  # Gradio's and the browser's, of any host
