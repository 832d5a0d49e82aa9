"""Takes at small scale with the identity engine: what is written, what survives a kill, what is replayed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.media.picture import cover, jpeg
from app.media.picture_file import read_still
from app.takes.inputs import InputArchive, load_input
from app.takes.machine import describe_machine, differences, recorded_engine
from app.takes.reader import read_take
from app.takes.records import (
    Changed,
    Generated,
    HandedOut,
    Opened,
    Pushed,
    Sourced,
    Stopped,
    StoredInput,
    Ticked,
    from_line,
    to_line,
)
from app.takes.replay import Replay, ReplayOptions
from app.takes.store import TakesFullError, TakeStore
from app.takes.writer import LOCK_NAME, LOG_NAME, TakeWriter
from app.worker.handle import WorkerHandle
from app.worker.messages import StartTake, StopTake, TakeRecords, ToWorker
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionProxy, SessionState
from app.worker.take import SessionTake
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, OutputError
from pipelines.core.types import Picture
from pipelines.files.loader_options import LoaderOptions, VideoChoices
from pipelines.files.lora_files import LoraFile
from pipelines.identity import IdentityEngine
from tests.fakes.picture_files import corners, display_p3, exif, saved

WIDTH, HEIGHT = 32, 24


def picture(number: int) -> Picture:
    """Return a noise picture: no two are equal, and JPEG changes them."""
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=WIDTH, height=HEIGHT))
    with WorkerHandle(options) as client:
        client.wait_ready(60)
        yield client


@pytest.fixture
def session(client: WorkerHandle) -> Iterator[SessionProxy]:
    session = client.open(control=Control(depth=2), prompt_only=False)
    wait_for(lambda: session.state is SessionState.LIVE)
    yield session
    session.close()


def feed(session: SessionProxy, count: int, period_s: float = 0.004) -> None:
    for number in range(count):
        assert session.submit(picture(number)) is not None
        time.sleep(period_s)


def replayed(folder: Path, options: ReplayOptions | None = None) -> tuple[list[Picture], Replay]:
    take = read_take(folder)
    replay = Replay(take, IdentityEngine(width=WIDTH, height=HEIGHT), options or ReplayOptions())
    return [frame.image for frame in replay.frames()], replay


def test_a_session_with_drops_and_controls_replays_hash_by_hash(session: SessionProxy, tmp_path: Path) -> None:
    feed(session, 3)  # before the take: none of its business
    session.start_take(tmp_path / "take")
    feed(session, 20)
    session.set_control(Control(depth=1, prompt=Control.of({"prompt": "a cat:2 | a robot"}).prompt))
    feed(session, 20, period_s=0.0)
    session.set_source(prompt_only=True)
    time.sleep(0.2)
    session.stop_take()
    frames, replay = replayed(tmp_path / "take")
    take = read_take(tmp_path / "take")
    assert take.complete
    assert take.opened.controls["depth"] == 2
    assert replay.counts.identical == len(take.hashes) > 20
    assert replay.counts.different == replay.counts.inputs == 0
    assert len(frames) == replay.counts.identical + replay.counts.unknown
    assert any(isinstance(record, Generated) for record in take.records)
    assert session.accounting.taken >= 43  # the session went on and counted all the time


def test_filling_in_gives_a_frame_for_every_input(session: SessionProxy, tmp_path: Path) -> None:
    session.start_take(tmp_path / "take")
    feed(session, 60, period_s=0.0)  # nearly all are replaced by newer ones
    session.record_undecoded(time.monotonic_ns(), jpeg(picture(1000)))  # dropped by a client
    session.record_undecoded(time.monotonic_ns(), b"no picture")
    last = picture(60)
    session.submit(last)
    wait_for(lambda: session.accounting.in_flight == 0)
    session.stop_take()
    take = read_take(tmp_path / "take")
    accepted = [r for r in take.records if isinstance(r, Pushed) and r.outcome == "accepted"]
    assert len(accepted) < 60
    assert len(take.inputs) == 63
    frames, replay = replayed(tmp_path / "take", ReplayOptions(fill_drops=True))
    assert len(frames) == 62  # all but the one that is no picture
    assert all(np.array_equal(frames[number], picture(number)) for number in range(60))
    assert np.array_equal(frames[-1], last)
    assert replay.counts.inputs == 1


def test_the_log_says_when_controls_and_pushes_happened(session: SessionProxy, tmp_path: Path) -> None:
    session.start_take(tmp_path / "take")
    feed(session, 4, period_s=0.03)
    session.set_control(Control(strength=0.25))
    feed(session, 2, period_s=0.03)
    session.stop_take()
    records = read_take(tmp_path / "take").records
    assert isinstance(records[0], Opened)
    change = next(r for r in records if isinstance(r, Changed))
    assert change.controls == {"strength": 0.25}
    before = [r.seq for r in records[: records.index(change)] if isinstance(r, Pushed) and r.outcome == "accepted"]
    assert before
    assert before[-1] <= change.after
    assert any(isinstance(r, Ticked) for r in records)
    with pytest.raises(InputError, match="not a take"):
        read_take(tmp_path)


def test_a_cut_off_log_replays_up_to_its_last_whole_line(session: SessionProxy, tmp_path: Path) -> None:
    session.start_take(tmp_path / "take")
    feed(session, 30)
    session.stop_take()
    log = tmp_path / "take" / LOG_NAME
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) * 2 // 3 - 7])
    frames, replay = replayed(tmp_path / "take")
    assert not read_take(tmp_path / "take").complete
    assert replay.counts.different == 0
    assert 0 < replay.counts.identical <= len(frames) < 30
    log.write_bytes(whole[:400] + b"damage\n" + whole[400:])
    with pytest.raises(InputError, match="Line"):
        read_take(tmp_path / "take")


def test_a_running_take_is_on_the_disk_within_a_second(session: SessionProxy, tmp_path: Path) -> None:
    """A killed front leaves behind what is on the disk at that moment."""
    session.start_take(tmp_path / "take")
    feed(session, 20)
    time.sleep(1.0)
    frames, replay = replayed(tmp_path / "take")
    assert replay.counts.identical >= 5
    assert frames
    session.stop_take()


def test_a_killed_worker_goes_on_in_the_same_take(tmp_path: Path) -> None:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=WIDTH, height=HEIGHT))
    with WorkerHandle(options) as client:
        client.wait_ready(60)
        session = client.open(prompt_only=False)
        wait_for(lambda: session.state is SessionState.LIVE)
        session.start_take(tmp_path / "take")
        feed(session, 15)
        assert client.status.pid is not None
        os.kill(client.status.pid, 9)
        wait_for(lambda: session.state is SessionState.OPENING)
        wait_for(lambda: session.state is SessionState.LIVE, 60)
        feed(session, 15)
        time.sleep(0.1)
        session.stop_take()
    take = read_take(tmp_path / "take")
    assert take.complete
    assert sum(isinstance(record, Opened) for record in take.records) == 2
    _, replay = replayed(tmp_path / "take")
    assert replay.counts.identical == len(take.hashes) > 10
    assert {stream for stream, _ in take.hashes} == {0, 1}


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_a_turned_or_transparent_file_is_kept_and_read_again_as_it_was(tmp_path: Path, form: str) -> None:
    side = Image.fromarray(corners()).transpose(Image.Transpose.ROTATE_90)
    files = [saved(side, form, exif=exif(6)), saved(side, form, exif=exif(6), icc_profile=display_p3())]
    if form == "WEBP":
        files.append(saved(Image.new("RGBA", (48, 32), (200, 30, 30, 90)), form, lossless=True))
    archive = InputArchive(tmp_path)
    shown = [cover(read_still(file, max_px=4096), WIDTH, HEIGHT) for file in files]
    kept = [archive.add(seq, seq, image, file) for seq, (image, file) in enumerate(zip(shown, files, strict=True))]
    dropped = archive.add_undecoded(9, files[0])
    archive.close()
    for stored, image in zip((*kept, dropped), (*shown, shown[0]), strict=True):
        assert stored.format == "received"
        loaded, same = load_input(tmp_path, stored, WIDTH, HEIGHT)
        assert same
        assert np.array_equal(loaded, image)


def test_what_was_received_is_kept_where_it_gives_the_same_pixels(tmp_path: Path) -> None:
    archive = InputArchive(tmp_path)
    file = jpeg(picture(1))
    from PIL import Image

    with Image.open(__import__("io").BytesIO(file)) as opened:
        decoded = np.asarray(opened.convert("RGB"))
    kept = archive.add(0, 1, decoded, file)
    copied = archive.add(1, 2, picture(2), file)  # not what the file shows
    quick = archive.add(2, 3, picture(3), None, hurry=True)
    archive.close()
    assert (kept.format, copied.format, quick.format) == ("received", "png", "rgb")
    for stored, wanted in ((kept, decoded), (copied, picture(2)), (quick, picture(3))):
        loaded, same = load_input(tmp_path, stored, WIDTH, HEIGHT)
        assert same
        assert np.array_equal(loaded, wanted)
    larger, _ = load_input(tmp_path, copied, 2 * WIDTH, 2 * HEIGHT)
    assert larger.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    with pytest.raises(InputError, match="not written by Zoetrope"):
        load_input(tmp_path, replace(kept, file="../../etc/passwd"), WIDTH, HEIGHT)


def test_a_writer_that_cannot_keep_up_ends_the_take_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    writer = TakeWriter(tmp_path / "take", on_trouble=said.append, queue_bytes=10)
    writer.add_frame(0, None, picture(0))
    wait_for(lambda: bool(said))
    assert "could not write it fast enough" in said[0]
    assert writer.ended
    writer.close()
    assert not (tmp_path / "take" / LOCK_NAME).exists()
    with pytest.raises(OutputError, match="cannot be written"):
        TakeWriter(tmp_path / "take")


def test_a_used_up_quota_ends_the_take_and_the_session_says_so(session: SessionProxy, tmp_path: Path) -> None:
    session.start_take(tmp_path / "take", lambda: False)
    wait_for(lambda: "quota for takes" in session.notice)
    assert not session.recording
    assert session.submit(picture(1)) is not None
    session.start_take(tmp_path / "next")  # and another one may begin
    with pytest.raises(InputError, match="already"):
        session.start_take(tmp_path / "third")
    session.stop_take()


def test_what_the_worker_says_of_an_earlier_take_comes_too_late(tmp_path: Path) -> None:
    sent: list[ToWorker] = []
    told: list[str] = []
    changed = threading.Condition(threading.RLock())
    take = SessionTake(
        "s", changed, send=sent.append, live=lambda: True, over=lambda: False, first_seq=lambda: 0, tell=told.append
    )

    def begun(number: int) -> None:
        wait_for(lambda: any(isinstance(m, StartTake) and m.take == number for m in sent))
        with changed:
            take.add_records(TakeRecords(session="s", take=number, records=(Sourced(prompt_only=True, after=0),)))
            changed.notify_all()

    for number, folder in ((1, "one"), (2, "two")):
        starting = threading.Thread(target=take.start, args=(tmp_path / folder, lambda: True))
        starting.start()
        begun(number)
        starting.join()
        if number == 1:
            writer = take._writer
            assert writer is not None
            with writer._changed:
                writer._give_up("the disk is full")
            wait_for(lambda: not take.recording)
    wait_for(lambda: told == ["the disk is full"])
    assert {message.take for message in sent if isinstance(message, StopTake)} <= {1}
    with changed:
        take.add_records(TakeRecords(session="s", take=1, records=(Stopped(reason=""),)))
    assert take.recording
    with changed:
        take.add_records(TakeRecords(session="s", take=2, records=(Stopped(reason=""),)))
    assert not take.recording


def test_the_store_deletes_the_oldest_finished_take_and_never_a_running_one(tmp_path: Path) -> None:
    store = TakeStore(tmp_path / "takes", limit_bytes=10_000, min_room_bytes=4000)
    folders = []
    for _ in range(3):
        folders.append(store.create())
        writer = TakeWriter(folders[-1], may_grow=store.may_grow)
        if len(folders) > 1:
            writer.close()
        else:
            running = writer
        (folders[-1] / "inputs-0001.bin").write_bytes(b"-" * 3500)
    left = {take.folder: take for take in store.takes()}
    assert left.keys() == {folders[0], folders[2]}  # the first is still running, the second had to go
    assert left[folders[0]].running
    assert not left[folders[2]].running
    with pytest.raises(InputError, match="being recorded"):
        store.delete(folders[0].name)
    (folders[0] / "inputs-0002.bin").write_bytes(b"-" * 9000)
    with pytest.raises(TakesFullError, match="no room"):
        store.create()
    running.close()
    made = store.create()
    assert not made.exists()  # the writer makes it: a take that is refused leaves nothing
    TakeWriter(made).close()
    assert made.is_dir()
    assert not folders[0].exists()  # it had to go, now that it is finished
    with pytest.raises(InputError, match="no such take"):
        store.find("../etc")


def test_another_machine_is_named_word_by_word() -> None:
    with IdentityEngine(width=WIDTH, height=HEIGHT).open() as stream:
        info = stream.info
    then = describe_machine("identity", LoaderOptions(width=WIDTH, allow_pickle=True), info, 2)
    assert json.loads(json.dumps(then)) == then
    assert differences(then, then) == []
    other = {**then, "threads": 1, "versions": {**then["versions"], "torch": "0.1"}}  # type: ignore[dict-item]
    found = differences(then, other)
    assert "threads 1 instead of 2" in found
    assert any(text.startswith("torch 0.1 instead of ") for text in found)
    assert (then["weights"], then["loader"]) == ("none", {**_LOADER, "width": WIDTH})
    assert recorded_engine(then) == ("identity", LoaderOptions(width=WIDTH))  # without allow_pickle
    with pytest.raises(InputError, match="which model"):
        recorded_engine({})


_LOADER = {"width": 0, "height": 0, "frames_per_slot": 1, "autoencoder": "auto", "safety": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LoaderOptions(), _LOADER),
        (LoaderOptions(max_slots=3, safety=False), {**_LOADER, "safety": False, "max_slots": 3}),
        (
            LoaderOptions(video=VideoChoices(kv_policy="sink", sink_frames=0, guidance=False)),
            {**_LOADER, "video": {"kv_policy": "sink", "sink_frames": 0, "guidance": False}},
        ),
        (LoaderOptions(stages=("repeat",)), {**_LOADER, "stages": ["repeat"]}),
        (LoaderOptions(step_cache="taylorseer"), {**_LOADER, "step_cache": "taylorseer"}),
    ],
)
def test_what_was_chosen_of_the_engine_survives_the_take(options: LoaderOptions, words: dict[str, object]) -> None:
    with IdentityEngine(width=WIDTH, height=HEIGHT).open() as stream:
        written = json.loads(json.dumps(describe_machine("identity", options, stream.info, 1)))
    assert written["loader"] == words
    assert recorded_engine(written) == ("identity", options)


def test_takes_of_earlier_versions_say_what_was_chosen_too() -> None:
    """Some words may be missing, and what only this version knows is."""
    old = {
        "model": "m",
        "loader": {"width": 64, "height": 32, "safety": False, "video": {"kv_policy": "deep-sink", "base": "wan"}},
        "loras": [["a/b", 0.5]],
    }
    assert recorded_engine(old) == (
        "m",
        LoaderOptions(
            width=64,
            height=32,
            safety=False,
            loras=(LoraFile(source="a/b", weight=0.5),),
            video=VideoChoices(kv_policy="deep-sink", base="wan"),
        ),
    )
    with pytest.raises(InputError, match=r"A video model has no option 'speed'\. It has: .*window_frames"):
        recorded_engine({**old, "loader": {"video": {"speed": 2}}})
    with pytest.raises(InputError, match="width cannot be 'wide'"):
        recorded_engine({**old, "loader": {"width": "wide"}})


@pytest.mark.parametrize(
    "record",
    [
        Changed(controls={"prompt": [["a cat", 2.0]]}, tick=3, after=-1),
        Pushed(seq=4, outcome="skipped"),
        HandedOut(seq=1, source_seq=None, sha256="00"),
        Stopped(reason=""),
        StoredInput(
            **{"seq": None, "captured_ns": 1, "file": "inputs-0001.bin", "offset": 0, "size": 1},
            **{"format": "received", "decoder": "opencv", "width": 0, "height": 0, "sha256": ""},
        ),
    ],
)
def test_records_survive_their_line(record: Changed) -> None:
    assert from_line(json.loads(json.dumps(to_line(record)))) == record
    with pytest.raises(ValueError, match="unknown kind"):
        from_line({"kind": "party"})
    with pytest.raises(ValueError, match="fields"):
        from_line({**to_line(record), "more": 1})
