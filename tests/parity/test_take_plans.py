"""A take of mini-image whose decoder changes to an int8 plan while it is recorded, replayed to the same frames."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from app.render.take import TakeRequest, render_take
from app.takes.machine import describe_machine
from app.takes.reader import Take, read_take
from app.takes.records import Swapped
from app.takes.replay import Replay, ReplayOptions
from app.takes.writer import LOG_NAME, TakeWriter
from app.worker.messages import OutputReady, OutputRelease, StartTake, StopTake, TakeRecords
from pipelines.backends.background import PlanPreparation
from pipelines.backends.openvino.library import NNCF, OPENVINO, refusal_of
from pipelines.core.controls import Control
from pipelines.core.errors import ModelError
from pipelines.image.engine import ImageEngine
from tests.fakes.prepared_image import INT8, OPTIONS, build_decoder, loads
from tests.fakes.worker_bench import Bench
from trt.store import PlanStore

_MISSING = refusal_of(OPENVINO, NNCF)
pytestmark = pytest.mark.skipif(_MISSING is not None, reason="" if _MISSING is None else _MISSING.message)
BEFORE, AFTER = 5, 5  # frames recorded before and after the plan is ready


load = loads(INT8)


@pytest.fixture(scope="module", autouse=True)
def late() -> Iterator[None]:
    """Plans are loaded after the frames that are recorded before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.backends.planned_image.PlanPreparation", partial(PlanPreparation, settle_s=2.0))
        yield


@dataclass
class Recording:
    """A worker with one session, which is recorded."""

    bench: Bench
    writer: TakeWriter
    frames: int = 0

    def run(self, done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline_s, "no more frames"
            self.bench.worker.run_once()
            for message in self.bench.receive():
                if isinstance(message, TakeRecords):
                    self.writer.add_records(message.records)
                if isinstance(message, OutputReady):
                    frame = self.bench.fronts[0].outputs.read(message.index, message.generation)
                    assert frame is not None
                    self.bench.pipe.send(OutputRelease(session="a", index=message.index, generation=message.generation))
                    if message.take:
                        self.writer.add_frame(frame.seq, frame.source_seq, frame.image)
                        self.frames += 1


def record(folder: Path, engine: ImageEngine, between: Callable[[Recording], None] = lambda recording: None) -> None:
    """Record some frames, do something, wait until the plan is loaded, record some more."""
    with engine.open() as probe:
        info = probe.info
    machine = describe_machine("mini-image", OPTIONS, info, torch.get_num_threads())
    bench = Bench(engine, side_px=info.width, machine=machine)
    bench.front("a", prompt_only=True, control=Control.of({"prompt": "a lighthouse", "seed": 3}))
    recording = Recording(bench, TakeWriter(folder))
    bench.pipe.send(StartTake(session="a", take=1, first_seq=0))
    recording.run(lambda: recording.frames >= BEFORE)
    between(recording)
    assert engine.preparation.wait(180)
    assert not engine.preparation.status.failed
    recording.run(lambda: recording.frames >= BEFORE + AFTER)
    bench.pipe.send(StopTake(session="a", take=1))
    recording.run(lambda: bench.worker._sessions["a"].recorder is None)
    recording.writer.close()
    bench.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the take, and the store that its plan was built into."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOETROPE_PLANS", str(folder / "plans"))
        build_decoder(PlanStore())
        engine = load("mini-image", OPTIONS)
        record(folder / "take", engine)
        engine.close()
    return folder


@pytest.fixture
def store(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanStore:
    """A copy of the store."""
    shutil.copytree(recorded / "plans", tmp_path / "plans")
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path / "plans"))
    return PlanStore()


@pytest.fixture
def engine(store: PlanStore) -> Iterator[ImageEngine]:
    made = load("mini-image", OPTIONS)
    yield made
    made.close()


def swaps(take: Take) -> list[Swapped]:
    return [line for line in take.records if isinstance(line, Swapped)]


def test_the_take_says_which_part_changed_to_which_plan_and_when(recorded: Path, store: PlanStore) -> None:
    take = read_take(recorded / "take")
    opening, change = swaps(take)
    assert take.records.index(opening) == 1
    assert (opening.part, opening.recipe, opening.plan) == ("decode", "", "")
    [entry] = store.entries()
    assert (change.part, change.recipe, change.files) == ("decode", "openvino-int8", entry.contents)
    assert change.plan == entry.folder.parent.name
    following = take.records[take.records.index(change) + 1]
    assert following.kind == "tick"
    assert following.tick == change.tick > opening.tick  # type: ignore[union-attr]
    assert change.inputs == [["latents", "float32", [1, 4, 48, 48], list(torch.empty(1, 4, 48, 48).stride())]]


def test_a_replay_changes_in_the_same_tick(recorded: Path, engine: ImageEngine) -> None:
    replay = Replay(read_take(recorded / "take"), engine, ReplayOptions())
    assert sum(1 for _ in replay.frames()) >= BEFORE + AFTER
    assert replay.counts.identical == BEFORE + AFTER
    assert replay.counts.different == 0
    assert not replay.counts.cautions
    [form] = engine.preparation.forms
    assert form.recipe == "openvino-int8"


def test_without_the_change_frames_differ(recorded: Path, engine: ImageEngine) -> None:
    """So the tests above would notice a plan that is used too early, too late or not at all."""
    engine.preparation.hold()
    replay = Replay(read_take(recorded / "take"), engine, ReplayOptions(other_backend=True))
    assert sum(1 for _ in replay.frames()) >= BEFORE + AFTER
    assert replay.counts.identical == BEFORE
    assert replay.counts.different == AFTER


@pytest.mark.soak
def test_a_take_that_begins_with_a_plan_which_is_dropped_and_comes_back(store: PlanStore, tmp_path: Path) -> None:
    """As when a LoRA's scale moves; here the weights stay, so that the plan is stored already."""
    live = loads(replace(INT8, loads_at_once=True))("mini-image", OPTIONS)

    def change(recording: Recording) -> None:
        live.preparation.weights_changed(1.0)
        recording.run(lambda: recording.frames > BEFORE)

    record(tmp_path / "take", live, change)
    live.close()
    take = read_take(tmp_path / "take")
    assert [bool(swap.plan) for swap in swaps(take)] == [True, False, True]
    engine = load("mini-image", OPTIONS)
    replay = Replay(take, engine, ReplayOptions())
    list(replay.frames())
    engine.close()
    assert (replay.counts.identical, replay.counts.different) == (BEFORE + AFTER, 0)


def test_the_command_line_replays_it(recorded: Path, store: PlanStore, tmp_path: Path) -> None:
    said: list[str] = []
    request = TakeRequest(take=recorded / "take", output=tmp_path / "frames", as_folder=True, runs_on={})
    assert render_take(request, load, said.append) == 0
    assert said == [f"{BEFORE + AFTER} frames identical to the live ones, 0 different."]


def test_a_plan_that_is_gone_is_named_before_anything_is_written(
    recorded: Path, store: PlanStore, tmp_path: Path
) -> None:
    shutil.rmtree(store.root)
    request = TakeRequest(take=recorded / "take", output=tmp_path / "frames", as_folder=True, runs_on={})
    with pytest.raises(ModelError, match=r"not stored here: openvino-int8-decode-\w+ \(decode\).*zoetrope plans"):
        render_take(request, load, lambda text: None)
    assert not (tmp_path / "frames").exists()


def test_a_plan_that_was_built_again_is_used_with_a_caution(
    recorded: Path, store: PlanStore, engine: ImageEngine, tmp_path: Path
) -> None:
    shutil.copytree(recorded / "take", tmp_path / "take")
    log = tmp_path / "take" / LOG_NAME
    [entry] = store.entries()
    log.write_text(log.read_text().replace(entry.contents, "0" * len(entry.contents)))
    replay = Replay(read_take(tmp_path / "take"), engine, ReplayOptions())
    list(replay.frames())
    assert replay.counts.cautions == {
        f"The plan {entry.folder.parent.name} was built again since: its result may differ in rounding."
    }


def test_the_plan_of_other_weights_is_refused(recorded: Path, engine: ImageEngine) -> None:
    replay = Replay(read_take(recorded / "take"), engine, ReplayOptions())
    module = engine.preparation._forms["decode"].part({"latents": torch.zeros(1, 4, 48, 48)}).module  # type: ignore[attr-defined]
    next(module.parameters()).data.mul_(1.01)
    with pytest.raises(ModelError, match=r"which is not that of this model.*weights: stored .*--backend eager"):
        list(replay.frames())


def test_takes_from_before_plans_are_replayed_without_a_word_about_them(
    recorded: Path, engine: ImageEngine, tmp_path: Path
) -> None:
    shutil.copytree(recorded / "take", tmp_path / "take")
    log = tmp_path / "take" / LOG_NAME
    kept = [line for line in log.read_text().splitlines() if json.loads(line)["kind"] != "swap"]
    log.write_text("\n".join(kept) + "\n")
    take = read_take(tmp_path / "take")
    assert not swaps(take)
    replay = Replay(take, engine, ReplayOptions())
    assert sum(1 for _ in replay.frames()) >= BEFORE + AFTER
