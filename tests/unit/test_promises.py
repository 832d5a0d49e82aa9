"""The numbers and names in docs/safety.md, api-http.md, takes.md, outputs.md and live.md are those of the code."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.api import generate, job_store
from app.api.context import ApiLimits
from app.api.errors import _TABLE, CODES, http_code
from app.api.job_store import JobState, JobStore
from app.api.schema import MAX_SECONDS, JobOptions
from app.api.stream.connection import StreamLimits
from app.cli.live import add_parser
from app.guard.middleware import _COOKIE_S
from app.guard.rules import MIN_TOKEN_CHARACTERS, GuardOptions
from app.outputs import record, recordings
from app.outputs.kinds import OUTPUT_KINDS
from app.outputs.live_encoder import LiveEncoder, LiveEncoding
from app.outputs.manager import MAX_ATTACHMENTS
from app.outputs.record import RecordingOptions
from app.outputs.recordings import RecordingStore
from app.server import tls
from app.server.limits import ServerLimits
from app.session.table import SessionLimits
from app.takes import inputs, writer
from app.takes.store import TakeStore
from app.takes.writer import TakeWriter
from app.webrtc.options import WebRtcOptions
from pipelines.core.control_table import CONTROLS
from pipelines.core.prompts import MAX_PROMPT_CHARACTERS, MAX_PROMPTS
from tests.fakes.api_server import api_server
from tests.fakes.guarded import LOCAL, Site
from tests.fakes.stream_server import wait_until, worker_client

DOCS = Path(__file__).parents[2] / "docs"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def words(name: str) -> str:
    """A page as one line, so that no sentence depends on where its lines break."""
    return " ".join((DOCS / name).read_text(encoding="utf-8").split())


def numbers(name: str, pattern: str) -> tuple[float, ...]:
    """The groups of the sentence `pattern`, which must be in the page."""
    found = re.search(pattern, words(name))
    assert found is not None, f"docs/{name} no longer says: {pattern}"
    return tuple(float(group) for group in found.groups())


def live_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["live"])


# ---- safety.md ------------------------------------------------------------------------------------------------------

GUARD = GuardOptions(port=1, hosts=frozenset())


def test_bodies_are_refused_at_the_sizes_of_the_document() -> None:
    text, picture, video = numbers(
        "safety.md",
        r"Bodies: (\d+) KiB, for the page's own calls too; `/v1/generate` (\d+) MiB, `/v1/jobs` (\d+) GiB",
    )
    assert (GUARD.text_bytes, GUARD.body_bytes, GUARD.upload_bytes) == (text * KIB, picture * MIB, video * GIB)
    limits = ApiLimits()
    assert (limits.message_bytes, limits.upload_bytes) == (picture * MIB, video * GIB)
    site = Site(LOCAL)
    for path, most in (
        *((path, text * KIB) for path in ("/page/notice", "/", "/healthz", "/config", "/v1/sessions", "/v1/whip")),
        *((path, picture * MIB) for path in ("/v1/generate", "/v1/generate/")),
        *((path, video * GIB) for path in ("/v1/jobs", "/v1/jobs/")),
    ):
        length = {"content-length": str(int(most) + 1)}
        assert site("POST", path, length, content=b"").status_code == 413, path
        length = {"content-length": str(int(most))}
        assert site("POST", path, length, content=b"").status_code == 200, path


def test_the_longest_prompt_fits_in_a_body_however_it_is_written() -> None:
    longest = [{"text": "🦊" * MAX_PROMPT_CHARACTERS, "weight": CONTROLS["prompt"].minimum}] * MAX_PROMPTS
    controls = {"prompt": longest, "negative_prompt": "🦊" * MAX_PROMPT_CHARACTERS}
    assert len(json.dumps({"controls": controls, "prompt_only": True})) < GUARD.text_bytes  # twelve bytes a character


def test_waits_rates_and_the_token_are_those_of_the_document() -> None:
    assert numbers("safety.md", r"keep the server waiting for (\d+) s, plus 1 s for every (\d+) KiB") == (
        GUARD.body_s,
        GUARD.body_bytes_per_s / KIB,
    )
    assert numbers("safety.md", r"too many wrong tokens \((\d+) a minute\)") == (GUARD.guesses_per_minute,)
    assert numbers("safety.md", r"sessions, images and jobs \((\d+) a minute\)") == (GUARD.sessions_per_minute,)
    assert numbers("safety.md", r"Sessions: (\d+) a minute from one address, (\d+) in all") == (
        GUARD.sessions_per_minute,
        SessionLimits().per_minute,
    )
    assert numbers("safety.md", r"A token has at least (\d+) characters") == (MIN_TOKEN_CHARACTERS,)
    assert numbers("safety.md", r"Secure under https, (\d+) days") == (_COOKIE_S / 86400,)
    assert numbers("safety.md", r"renewed (\d+) days before it expires") == (tls._RENEW.days,)
    width, height = numbers("safety.md", r"Images and video frames above (\d+) × (\d+) px are refused")
    assert ApiLimits().picture_px == width * height


def test_the_limits_of_connections_are_those_of_the_document() -> None:
    limits, stream, webrtc = ServerLimits(), StreamLimits(), WebRtcOptions()
    assert numbers("safety.md", r"connections \| (\d+), or half the number of files") == (limits.connections,)
    assert "of one address three quarters of them" in words("safety.md")
    assert limits.per_address == 0.75
    assert numbers("safety.md", r"whole request header.*?\| (\d+) s") == (limits.request_s,)
    assert numbers("safety.md", r"without `hello` \| (\d+) s each, (\d+) of one address, (\d+) in all") == (
        stream.hello_s,
        stream.waiting_per_address,
        stream.waiting,
    )
    assert numbers("safety.md", r"first message of a WebSocket \| (\d+) KiB") == (limits.first_bytes / KIB,)
    assert numbers(
        "safety.md", r"may send (\d+) pieces at once .*?, then (\d+) a second and .*? every (\d+) bytes"
    ) == (
        limits.pieces,
        limits.pieces_per_s,
        limits.piece_bytes,
    )
    assert numbers("safety.md", r"who takes less than (\d+) KiB a second for (\d+) s") == (
        limits.bytes_per_s / KIB,
        limits.unread_s,
    )
    assert numbers("safety.md", r"Candidates of a WebRTC peer: (\d+)") == (webrtc.candidates,)


def modes(folder: Path) -> dict[str, int]:
    found = {}
    for root, folders, files in os.walk(folder):
        found.update({str(Path(root, name)): stat.S_IMODE(Path(root, name).stat().st_mode) for name in folders + files})
    return found


def test_other_users_are_kept_out_of_what_is_recorded_whatever_the_umask(tmp_path: Path) -> None:
    folders, files = (int(text, 8) for text in re.findall(r"0[67]00", words("safety.md")))
    assert (folders, files) == (0o700, 0o600)
    data = tmp_path / "data"
    (data / "recordings").mkdir(parents=True)  # of an earlier version
    (data / "recordings").chmod(0o755)
    before = os.umask(0)
    try:
        with worker_client() as worker, api_server(worker, data) as server:
            made = server.http.post("/v1/sessions", json={"prompt_only": True}).json()
            headers, url = {"authorization": f"Bearer {made['token']}"}, f"/v1/sessions/{made['id']}"
            wait_until(lambda: server.http.get(url, headers=headers).json()["state"] == "live")
            assert server.http.post(f"{url}/take", headers=headers).status_code == 201
            output = server.http.post(f"{url}/outputs", json={"kind": "recording"}, headers=headers).json()
            job = server.http.post("/v1/jobs", files={"options": (None, '{"seconds": 0.1}')}).json()
            wait_until(lambda: server.http.get(f"{url}/outputs", headers=headers).json()["outputs"][0]["done"] > 3)
            growing = modes(data)
            server.http.delete(f"{url}/outputs/{output['id']}", headers=headers)
            wait_until(lambda: server.http.get(job["url"]).json()["state"] == "done")
            server.http.delete(f"{url}/take", headers=headers)
            for found in (growing, modes(data)):
                assert {".mp4", ".jsonl"} <= {Path(path).suffix for path in found}
                wrong = {path: oct(mode) for path, mode in found.items() if mode not in (folders, files)}
                assert not wrong
    finally:
        os.umask(before)
    tls.self_signed(tmp_path / "tls", "127.0.0.1")
    assert set(modes(tmp_path / "tls").values()) == {files}
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == folders


# ---- takes.md -------------------------------------------------------------------------------------------------------


def test_the_sizes_and_times_of_takes_are_those_of_the_document() -> None:
    assert numbers("takes.md", r"concatenated, at most (\d+) MiB a file") == (inputs._SEGMENT_BYTES / MIB,)
    assert numbers("takes.md", r"Its queue is bounded \((\d+) MiB\)") == (writer._QUEUE_BYTES / MIB,)
    assert "Records reach the disk every half second" in words("takes.md")
    assert writer._FLUSH_S == 0.5
    assert "the first four and every thirtieth are checked" in words("takes.md")
    assert (inputs._CHECKED_AT_FIRST, inputs._CHECKED_EVERY) == (4, 30)
    quota = numbers("takes.md", r"`--take-quota-gb` \((\d+)\)")
    assert quota == (live_options().take_quota_gb,) == (ApiLimits().take_bytes / GIB,)


def test_all_takes_together_stay_below_the_quota_whatever_waits_to_be_written(tmp_path: Path) -> None:
    limit = 24 * MIB
    store = TakeStore(tmp_path / "takes", limit, min_room_bytes=MIB)
    noise = np.random.default_rng(0)
    told: list[str] = []
    writers = [TakeWriter(store.create(), may_grow=store.may_grow, on_trouble=told.append) for _ in range(2)]
    for number in range(60):  # 786 kB each, as no codec makes less of noise
        for one in writers:
            one.add_input(number, number, noise.integers(0, 255, (512, 512, 3), dtype=np.uint8), None)
    most = 0
    while not all(one.ended for one in writers):
        most = max(most, sum(take.size for take in store.takes()))
    for one in writers:
        one.close()
    most = max(most, sum(take.size for take in store.takes()))
    assert limit // 4 < most <= limit
    assert len(told) == 2
    assert all("quota for takes is used up" in text for text in told)


# ---- outputs.md -----------------------------------------------------------------------------------------------------


def test_the_numbers_of_outputs_are_those_of_the_document() -> None:
    assert numbers("outputs.md", r"buffers (\d+) frames") == (RecordingOptions(path=Path("x.mp4")).max_queued_frames,)
    assert numbers("outputs.md", r"At most (\d+) outputs per session") == (MAX_ATTACHMENTS,)
    assert numbers("outputs.md", r"without a connection or a request for (\d+) s") == (SessionLimits().grace_s,)
    quota = numbers("outputs.md", r"`--recording-quota-gb` \((\d+)\)")
    assert quota == (live_options().recording_quota_gb,) == (ApiLimits().recording_bytes / GIB,)
    assert numbers("outputs.md", r"UDP 127\.0\.0\.1:(\d+)") == (9000,)
    assert numbers("outputs.md", r"Gaps above (\d+) ms become silence") == (100,)
    assert record._QUOTA_CHECK_S == 1.0


def test_the_fields_of_outputs_and_their_defaults_are_those_of_the_document() -> None:
    table = (DOCS / "outputs.md").read_text(encoding="utf-8").split("| kind | fields |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert {row[0].split("`")[1] for row in rows} == {kind.name for kind in OUTPUT_KINDS}
    for kind in OUTPUT_KINDS:
        row = next(row for row in rows if row[0].split("`")[1] == kind.name)
        told = dict(re.findall(r"`(\w+)`(?: \((\w+)\))?", row[1]))
        fields: dict[str, Any] = {name: field for name, field in kind.request.model_fields.items() if name != "kind"}
        assert told.keys() == fields.keys()
        for name, default in told.items():
            assert default in ("", str(fields[name].default).lower()), (kind.name, name)


def test_recordings_stay_below_their_quota_and_a_copy_of_seconds_deletes_nothing(tmp_path: Path) -> None:
    limit = 64 * MIB
    store = RecordingStore(tmp_path / "recordings", limit)
    old, running = store.begin(), store.begin()
    store.ended(old)
    for path, size in ((old, 20 * MIB), (running, 30 * MIB)):
        path.touch()
        os.truncate(path, size)
    copy = running.with_name(f".{running.stem}.final.mp4")
    copy.touch()
    os.truncate(copy, 30 * MIB)
    assert store.may_grow()
    assert old.exists()
    os.truncate(running, limit - 21 * MIB - recordings._AHEAD_BYTES)
    assert store.may_grow()  # what is left is enough for a second of one recording
    assert old.exists()
    os.truncate(running, limit - 20 * MIB - recordings._AHEAD_BYTES + 1)
    assert store.may_grow()
    assert not old.exists()  # the oldest had to go before the limit was passed
    os.truncate(running, limit - recordings._AHEAD_BYTES + 1)
    assert not store.may_grow()
    store.ended(running)


def test_a_push_has_a_constant_bit_rate_of_a_still_picture_too() -> None:
    assert "H.264 at a constant bit rate, of a still picture too" in words("outputs.md")
    sink, seconds, kbps = io.BytesIO(), 4, 1000
    container = av.open(sink, "w", format="flv")
    encoding = LiveEncoding(size=(128, 96), rate=Fraction(15), video_kbps=kbps, silence=False)
    encoder = LiveEncoder(container, encoding)
    for tick in range(15 * seconds):
        encoder.write(np.full((96, 128, 3), 90, np.uint8), tick)
    encoder.finish()
    container.close()
    assert len(sink.getvalue()) * 8 / seconds / 1000 == pytest.approx(kbps, rel=0.15)


# ---- live.md --------------------------------------------------------------------------------------------------------


def test_the_options_and_numbers_of_live_are_those_of_the_document() -> None:
    options = live_options()
    assert numbers("live.md", r"At most `--max-sessions` \((\d+)\) stream at once") == (options.max_sessions,)
    assert numbers("live.md", r"restored to the same session within (\d+) s") == (SessionLimits().grace_s,)
    assert numbers("live.md", r"in GiB \((\d+) each\)") == (options.take_quota_gb,) == (options.recording_quota_gb,)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = set(subparsers.choices["live"]._option_string_actions)
    rows = re.findall(r"^\| (`--.*?) \|", (DOCS / "live.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {option for row in rows for option in re.findall(r"`(--[a-z-]+)`", row)}
    assert told <= known
    assert len(told) > 20


# ---- api-http.md ----------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_http_api_are_those_of_the_document() -> None:
    limits = ApiLimits()
    assert numbers("api-http.md", r"at most (\d+) wait or run") == (limits.jobs,)
    assert numbers("api-http.md", r"the last (\d+) finished ones are kept for a day") == (job_store._KEPT_JOBS,)
    assert job_store._KEPT_S == 24 * 3600
    assert numbers("api-http.md", r"where it is required; up to (\d+)\)") == (MAX_SECONDS,)
    assert numbers("api-http.md", r"`fps` \(then too, default (\d+)\)") == (JobOptions().fps,)
    assert "for at most a minute" in words("api-http.md")
    assert generate._MAX_S == 60
    prompt = CONTROLS["prompt"]
    assert numbers("api-http.md", r"relative weights from ([\d.]+) to (\d+)") == (prompt.minimum, prompt.maximum)


def test_every_code_has_its_row_with_its_statuses() -> None:
    table = (DOCS / "api-http.md").read_text(encoding="utf-8").split("| code | status | |")[1].split("\n\n")[0]
    rows: dict[str, set[int]] = {}
    for line in table.splitlines()[2:]:
        codes, statuses = line.strip("|").split("|")[:2]
        for code in re.findall(r"`(\w+)`", codes):
            rows[code] = {int(status) for status in re.findall(r"\d{3}", statuses)}
    assert rows.keys() == set(CODES)
    for _, status, code in _TABLE:
        assert status in rows[code], (code, status)
    for status in (401, 403, 404, 405, 406, 408, 412, 413, 415, 416, 422, 428, 429, 500, 503):
        assert status in rows[http_code(status)], status


def test_every_metric_has_its_row(tmp_path: Path) -> None:
    table = (DOCS / "api-http.md").read_text(encoding="utf-8").split("## Metrics")[1].split("##")[0]
    told = set(re.findall(r"`(zoetrope_\w+)`", table))
    with worker_client() as worker, api_server(worker, tmp_path) as server:
        made = server.http.post("/v1/sessions", json={"prompt_only": True}).json()
        headers = {"authorization": f"Bearer {made['token']}"}
        wait_until(
            lambda: server.http.get(f"/v1/sessions/{made['id']}", headers=headers).json()["accounting"]["out"] > 2
        )
        text = server.http.get("/metrics").text
    found = set(re.findall(r"^(zoetrope_\w+)", text, re.MULTILINE))
    absent = {"zoetrope_gpu_bytes", "zoetrope_latency_seconds", "zoetrope_frame_age_seconds"}  # no card, no inputs
    assert found <= told
    assert told - found <= absent


def test_finished_jobs_are_kept_as_long_as_promised_and_no_longer(tmp_path: Path) -> None:
    async def scene() -> None:
        store = JobStore(tmp_path, 2, kept_s=0.2)
        job = await store.reserve()
        store._end(job, JobState.DONE)
        assert store.get(job.id) is job
        await asyncio.sleep(0.05)
        assert job.folder.exists()
        async with asyncio.timeout(5):
            while job.folder.exists():
                await asyncio.sleep(0.02)
        await store.close()

    asyncio.run(scene())
