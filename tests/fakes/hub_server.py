"""A minimal model hub on a loopback port: lists and serves one folder as one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(hub_id: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as `hub_id`. Yields the endpoint and a growing list of downloaded file names."""
    fetched: list[str] = []
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            resolve = f"/{hub_id}/resolve/{COMMIT}/"
            if path.startswith(f"/api/models/{hub_id}/tree/"):
                entries = [_entry(name, file) for name, file in files.items()]
                self._send(json.dumps(entries).encode(), "application/json", body=body)
            elif path == f"/api/models/{hub_id}" or path.startswith(f"/api/models/{hub_id}/revision/"):
                siblings = [{"rfilename": name, "size": file.stat().st_size} for name, file in files.items()]
                info = {"id": hub_id, "modelId": hub_id, "sha": COMMIT, "siblings": siblings, "tags": []}
                self._send(json.dumps(info).encode(), "application/json", body=body)
            elif path.startswith(resolve) and path.removeprefix(resolve) in files:
                name = path.removeprefix(resolve)
                if body:
                    fetched.append(name)
                self._send(files[name].read_bytes(), "application/octet-stream", body=body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, content: bytes, kind: str, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(name: str, file: Path) -> dict[str, object]:
    oid = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": oid}
