"""Render jobs over HTTP: real renders with the identity engine, limits, cancelling, and nothing left behind."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from unittest.mock import ANY

import av
import httpx
import psutil
import pytest
from PIL import Image

from app.api.context import ApiLimits
from app.api.job_store import Job, JobState, JobStore
from app.api.jobs import _MEDIA_TYPES, RunningModel, render_arguments
from app.api.schema import JobOptions
from app.api.uploads import Multipart
from app.disk.locks import HeldLock, is_held
from app.media.containers import ANIMATIONS, CONTAINERS
from app.worker.handle import WorkerHandle
from pipelines.core.errors import InputError, TooLargeError
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.clips import make_clip, play
from tests.fakes.picture_files import saved
from tests.fakes.stream_server import wait_until, worker_client

RUNNING = RunningModel(argument="identity", size=(32, 24))
MODELS = {"identity": "identity", "mini-image": "mini-image"}


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    with worker_client() as made:
        yield made


@pytest.fixture
def server(worker: WorkerHandle, tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(worker, tmp_path / "data", ApiLimits(jobs=2, upload_bytes=200_000)) as made:
        yield made


def sent(server: ApiServer, video: bytes | None = None, **options: object) -> httpx.Response:
    parts: dict[str, object] = {"options": (None, json.dumps(options))}
    if video is not None:
        parts["video"] = ("../../../etc/passwd", io.BytesIO(video))
    return server.http.post("/v1/jobs", files=parts)


def over(server: ApiServer, url: str) -> dict[str, object]:
    """Wait for the job to end and return it."""
    deadline_s = time.monotonic() + 60
    while True:
        found: dict[str, object] = server.http.get(url).json()
        if found["state"] not in ("waiting", "running"):
            return found
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def files(server: ApiServer) -> list[Path]:
    return [path for path in server.context.data.rglob("*") if path.is_file()]


def test_a_video_is_uploaded_rendered_downloaded_and_deleted(server: ApiServer, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=10)
    answer = sent(server, clip.read_bytes(), controls={"prompt": "-x: a | b", "seed_lock": False})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["url"]
    assert all("passwd" not in str(path) for path in files(server))
    ended = {"state": "done", "frames": 10, "total_frames": 10, "progress": 1.0, "notes": ANY}
    assert over(server, job["url"]) == {**job, **ended}
    video = server.http.get(job["file_url"])
    assert video.headers["content-type"] == "video/mp4"
    (tmp_path / "out.mp4").write_bytes(video.content)
    assert len(play(tmp_path / "out.mp4").greys) == 10
    assert server.http.delete(job["url"]).status_code == 204
    assert code(server.http.get(job["url"])) == (404, "unknown_job")
    assert files(server) == []


@pytest.mark.parametrize("kind", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"])
def test_an_uploaded_list_of_the_servers_files_is_not_followed(server: ApiServer, tmp_path: Path, kind: str) -> None:
    secret = make_clip(tmp_path / "secret.mp4", frames=3)
    found = over(server, sent(server, kind.format(secret).encode()).json()["url"])
    assert (found["state"], found["frames"]) == ("failed", 0)
    assert "Opened are MP4, MOV" in str(found["message"])
    assert str(server.context.data) not in str(found["message"])


def test_a_prompt_alone_is_rendered_at_the_live_size(server: ApiServer, tmp_path: Path) -> None:
    job = sent(server, seconds=0.5, fps=10, format="webm", controls={"prompt": "a cat"}).json()
    assert over(server, job["url"])["frames"] == 5
    (tmp_path / "out.webm").write_bytes(server.http.get(job["file_url"]).content)
    with av.open(str(tmp_path / "out.webm")) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, len(list(video.decode(video=0)))) == (32, 24, 5)


def test_a_job_reads_no_picture_and_no_frame_above_the_servers_limit(worker: WorkerHandle, tmp_path: Path) -> None:
    picture = saved(Image.new("RGB", (128, 64)), "PNG")
    clip = make_clip(tmp_path / "clip.mp4", frames=2, size=(128, 64)).read_bytes()
    with api_server(worker, tmp_path / "data", ApiLimits(picture_px=64 * 64)) as server:
        for file in (picture, clip, saved(Image.new("RGB", (128, 64)), "AVIF")):
            found = over(server, sent(server, file).json()["url"])
            assert found["state"] == "failed"
            assert "Scale it down first" in str(found["message"])
        small = saved(Image.new("RGB", (64, 64)), "PNG")
        assert over(server, sent(server, small).json()["url"])["state"] == "done"


@pytest.mark.soak
def test_an_animated_gif_can_be_asked_for(server: ApiServer, tmp_path: Path) -> None:
    job = sent(server, seconds=0.5, fps=10, format="gif", controls={"prompt": "a cat"}).json()
    assert over(server, job["url"])["frames"] == 5
    answer = server.http.get(job["file_url"])
    assert answer.headers["content-type"] == "image/gif"
    assert answer.content[:4] == b"GIF8"


def test_a_job_tells_what_became_of_the_sound(server: ApiServer, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=10)
    told = []
    for kind in ("webm", "gif"):
        job = over(server, sent(server, clip.read_bytes(), format=kind).json()["url"])
        assert job["state"] == "done"
        assert job["message"] == ""
        notes = job["notes"]
        assert isinstance(notes, list)
        told.append(" ".join(notes))
    assert "The sound (aac, " in told[0]
    assert "is encoded again as opus" in told[0]
    assert "no sound" in told[1]
    assert str(server.context.data) not in "".join(told)


def test_every_kind_of_file_that_a_render_writes_can_be_asked_for() -> None:
    formats = JobOptions.model_json_schema()["properties"]["format"]["enum"]
    assert {f".{name}" for name in formats} == {*CONTAINERS, *ANIMATIONS}
    assert set(_MEDIA_TYPES) == set(formats)


def test_what_is_no_video_fails_with_words_and_without_paths(server: ApiServer) -> None:
    job = sent(server, b"no video").json()
    found = over(server, job["url"])
    assert found["state"] == "failed"
    assert "input" in str(found["message"])
    assert str(server.context.data) not in str(found["message"])
    assert code(server.http.get(job["file_url"])) == (409, "not_ready")


def test_a_cancelled_job_s_process_and_files_are_gone_and_there_is_room_again(server: ApiServer) -> None:
    first, second = (sent(server, seconds=3600, fps=240).json() for _ in range(2))
    assert code(sent(server, seconds=1)) == (503, "busy")
    wait_until(lambda: len(renders()) == 1)  # one at a time
    wait_until(lambda: server.http.get(first["url"]).json()["state"] == "running")
    assert server.http.get(second["url"]).json()["state"] == "waiting"
    assert server.http.delete(second["url"]).status_code == 204
    assert server.http.delete(first["url"]).status_code == 204
    assert renders() == []
    assert files(server) == []
    assert sent(server, seconds=0.1).status_code == 202


def renders() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if "render" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:  # it has ended meanwhile
            continue
    return found


def test_the_end_of_the_server_ends_its_jobs_and_what_killed_ones_left(worker: WorkerHandle, tmp_path: Path) -> None:
    left, numbered, theirs = (tmp_path / "jobs" / name for name in ("0123456789abcdef", "1", "fedcba9876543210"))
    for folder in (left, numbered, theirs):
        (folder / "a").mkdir(parents=True)
    (left / "running.lock").touch()
    lock = HeldLock(theirs / "running.lock")  # another server, whatever its process number and container
    with api_server(worker, tmp_path) as server:
        assert not left.exists()
        assert not numbered.exists()  # an earlier version's, which has no lock
        assert (theirs / "a").exists()
        assert sent(server, seconds=3600).status_code == 202
        wait_until(lambda: len(renders()) == 1)
        own = next(folder for folder in (tmp_path / "jobs").iterdir() if folder.is_dir() and folder != theirs)
        assert is_held(own / "running.lock")
    assert renders() == []
    assert list((tmp_path / "jobs").iterdir()) == [theirs]
    lock.release()


def test_a_folder_that_cannot_be_made_is_said_and_takes_no_job_s_place(server: ApiServer) -> None:
    jobs = server.context.data / "jobs"
    jobs.parent.mkdir(parents=True, exist_ok=True)
    jobs.write_bytes(b"in the way")
    for _ in range(5):  # more than there are places
        answer = sent(server, seconds=0.1)
        assert answer.status_code == 500
        assert "cannot be made" in answer.json()["error"]["message"]
    jobs.unlink()
    assert sent(server, seconds=0.1).status_code == 202


def test_a_render_that_fails_unexpectedly_ends_and_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        store = JobStore(tmp_path, 1)
        for _ in range(2):
            job = await store.reserve()
            store.start(job, [], output_name="out.mp4", with_input=False)
            with suppress(RuntimeError):
                await store._tasks[job.id]
            assert job.state is JobState.FAILED
            assert job.message
        await store.close()

    async def render(self: JobStore, job: Job, command: Sequence[str]) -> int:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(JobStore, "_render", render)
    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (400, "bad_input")),
        ({"seconds": 1, "model": "/etc/passwd"}, (404, "unknown_model")),
        ({"seconds": 1, "model": "somebody/else"}, (404, "unknown_model")),
        ({"seconds": 1, "out_size": "source"}, (400, "bad_input")),
        ({"seconds": 1, "output": "/tmp/x.mp4"}, (400, "bad_input")),
        ({"seconds": "1"}, (400, "bad_input")),
        ({"seconds": 1e9}, (400, "bad_input")),
        ({"seconds": 1, "controls": {"strength": 9}}, (422, "bad_control")),
        ({"seconds": 1, "controls": {"prompt": "a\0b"}}, (422, "bad_control")),
        ({"seconds": 1, "controls": {"prompt": [{"text": "a|b"}]}}, (422, "bad_control")),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    server: ApiServer, options: dict[str, object], expected: tuple[int, str]
) -> None:
    assert code(sent(server, **options)) == expected
    assert files(server) == []


def test_an_upload_is_stopped_at_the_limit_while_it_comes(server: ApiServer) -> None:
    assert code(sent(server, bytes(400_000))) == (413, "too_large")

    def endless() -> Iterator[bytes]:  # no length announced: the cap must hold on what has come
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
        for _ in range(4_000):
            yield bytes(65_536)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with suppress(httpx.TransportError):  # the server has answered and closed while we were still sending
        assert code(server.http.post("/v1/jobs", content=endless(), headers=headers)) == (413, "too_large")
    wait_until(lambda: files(server) == [])
    assert server.http.get("/healthz").status_code == 200


def test_every_option_is_one_argument() -> None:
    options = JobOptions.model_validate(
        {"seconds": 2, "controls": {"prompt": [{"text": "--force", "weight": 2}, {"text": "a:1"}], "seed_lock": True}}
    )
    assert render_arguments(options, MODELS, running=RUNNING, with_input=False) == [
        "--model=identity", "--aspect=pad", "--out-size=native", "--size=32x24", "--prompt-only", "--seconds=2.0",
        "--fps=24.0", "--prompt=--force:2.0 | a:1:1.0", "--seed-lock",
    ]  # fmt: skip
    other = JobOptions(model="mini-image")
    assert "--size=32x24" not in render_arguments(other, MODELS, running=RUNNING, with_input=True)
    with pytest.raises(InputError, match="seconds was given with a video"):
        render_arguments(options, MODELS, running=RUNNING, with_input=True)


def test_progress_is_read_from_the_render_s_own_bar(tmp_path: Path) -> None:
    job = Job(id="x", folder=tmp_path)
    job.read_line("out.mp4:  25%|##5       | 6/24 [00:01<00:03,  5.00frame/s]")
    assert (job.frames, job.total_frames, job.progress) == (6, 24, 0.25)
    job.read_line("out.mp4: 7/? [00:01, 5frame/s]")
    assert (job.frames, job.total_frames, job.progress) == (7, None, 0.0)


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_multipart_body_is_read_in_any_pieces(step: int) -> None:
    body = httpx.Request(
        "POST", "http://x", files={"prompt": (None, "a cat ä"), "video": ("n", b"\r\n--x\r\n" * 9)},
        headers={"Content-Type": "multipart/form-data; boundary=bound"},
    ).read()  # fmt: skip
    parser = Multipart(b"bound", "video", 100)
    file = b""
    for start in range(0, len(body), step):
        parser.feed(body[start : start + step])
        file += parser.take_file()
    assert parser.complete
    assert (parser.fields(), file) == ({"prompt": "a cat ä"}, b"\r\n--x\r\n" * 9)
    with pytest.raises(TooLargeError):
        Multipart(b"bound", "video", 3).feed(body)
