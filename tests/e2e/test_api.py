"""The OpenAPI document against the server: schemathesis, an independent tool, generates the requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.guard.rules import GuardOptions
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.stream_server import worker_client

REPOSITORY = Path(__file__).parents[2]
pytest.importorskip("schemathesis", reason="it makes up the requests: pip install '.[test]'")


TOKEN = "correct-horse-battery"  # of tests
GUARD = GuardOptions(
    port=1, hosts=frozenset(), token=TOKEN, sessions_per_minute=1_000_000, guesses_per_minute=1_000_000
)  # all requests come from one address
SETTINGS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 412, 428, 429, "5xx"]
"""
# All checks, all routes. 503: "busy" is a documented answer, not a fault; any other 5xx is one. 412, 428: a request
# that fits is refused for If-Match, a precondition that nobody can make up. The other numbers are schemathesis's own.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    data = tmp_path_factory.mktemp("data")
    with worker_client(max_sessions=16) as worker, api_server(worker, data, guard=GUARD) as made:
        yield made


def schemathesis(server: ApiServer, folder: Path, examples: int, *more: str) -> None:
    """Run schemathesis over every route of the document, with the hooks of tests/fakes/openapi_hooks.py."""
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS)
    document = folder / "openapi.json"
    document.write_text(json.dumps(server.app.openapi()))
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", str(document),
        "--max-examples", str(examples), "--seed", "1", "--generation-database", "none", "--no-color",
        "--request-timeout", "20", "--suppress-health-check", "all", "--url", server.url, *more,
    ]  # fmt: skip
    paths = os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", "")))
    reached = folder / "reached.json"
    hooks = {"SCHEMATHESIS_HOOKS": "tests.fakes.openapi_hooks", "PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
    hooks |= {"SERVER_TOKEN": TOKEN, "REACHED": str(reached)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, check=False, env={**os.environ, **hooks}, cwd=folder
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    statuses: dict[str, list[int]] = json.loads(reached.read_text())
    paths_of = server.app.openapi()["paths"]
    operations = {f"{method.upper()} {path}" for path, item in paths_of.items() for method in item}
    refused = {name: statuses.get(name) for name in operations if not any(s < 300 for s in statuses.get(name, ()))}
    assert not refused, "never reached"


def test_the_document_says_what_there_is(server: ApiServer) -> None:
    document = server.http.get("/v1/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert {"/v1/sessions", "/v1/sessions/{session_id}", "/v1/generate", "/v1/jobs", "/metrics"} <= set(
        document["paths"]
    )
    text = json.dumps(document)
    assert str(Path.cwd()) not in text
    assert "ControlChanges" in document["components"]["schemas"]


@pytest.mark.soak
def test_made_up_requests_find_nothing(server: ApiServer, tmp_path: Path) -> None:
    schemathesis(server, tmp_path, 3, "--phases", "examples,fuzzing")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_made_up_requests_find_nothing(server: ApiServer, tmp_path: Path) -> None:
    schemathesis(server, tmp_path, 20)
