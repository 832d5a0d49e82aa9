"""A video engine whose parts are compiled beside it: what it makes before, while and after they are swapped in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipelines.backends.background import PlanPreparation
from pipelines.backends.base import Backend
from pipelines.backends.planned_video import planned_video
from pipelines.backends.table import BACKENDS, backend_table
from pipelines.core.controls import Control
from pipelines.core.origin import Origin
from pipelines.core.types import Picture
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine
from pipelines.video.model import VideoNetworks, VideoRuntime
from pipelines.video.runtime import plain_runtime
from tests.fakes.copying_recipe import CopyingRecipe
from trt.store import PlanStore

SIZES = {
    "width": 64,
    "height": 64,
    "dtype": "float32",
    "video": {"chunk_frames": 2, "window_frames": 6, "sink_frames": 2},
}
CHUNKS, SWAP_BEFORE = 5, 4
ORIGIN = Origin(
    model="mini-video",
    module="pipelines.load",
    function="load_engine",
    arguments={"model": "mini-video", "backend": "eager", "device": "cpu", "prepare": False, **SIZES},
)
PLAIN_PASSES = "Passes run in PyTorch where the pass does not have 64 past tokens, as while the window fills."


@dataclass(frozen=True, kw_only=True)
class PreparedBackend(Backend):
    """Eager, but the pass and the decoder are compiled by recipes."""

    recipes: Mapping[str, CopyingRecipe]
    name: str = "prepared"
    purpose: str = "tests"
    notices: list[str] = field(default_factory=list)

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        networks = replace(networks, origin=ORIGIN, notice=self.notices.append)
        return replace(planned_video(networks, plain_runtime(networks), self.recipes), backend=self.name)


@pytest.fixture(scope="module", autouse=True)
def at_once() -> Iterator[None]:
    """Work on what is wanted begins almost at once: an engine wants all of its parts in one go."""
    with pytest.MonkeyPatch.context() as patch:
        name = "pipelines.backends.planned_video.PlanPreparation"
        patch.setattr(name, partial(PlanPreparation, settle_s=0.1))
        yield


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanStore:
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    return PlanStore()


def load(recipe: CopyingRecipe | None, decode: CopyingRecipe | None = None) -> tuple[VideoEngine, list[str]]:
    """recipe: of the pass and, unless another is given, of the decoder; None: nothing is compiled."""
    backend = PreparedBackend(recipes={} if recipe is None else {"pass": recipe, "decode": decode or recipe})
    table = backend_table(*BACKENDS.values(), backend)
    name = "eager" if recipe is None else "prepared"
    engine = load_engine("mini-video", backend=name, backends=table, device="cpu", notice=lambda text: None, **SIZES)
    assert isinstance(engine, VideoEngine)
    return engine, backend.notices


def render(engine: VideoEngine, *, wait_before: int = -1) -> list[Picture]:
    """Two streams whose prompt and action change. wait_before: the chunk before which all plans are awaited."""
    pictures: list[Picture] = []
    streams = [engine.open(Control.of({"prompt": text})) for text in ("a cat", "a robot on the beach")]
    for chunk in range(CHUNKS):
        if chunk == wait_before:
            assert engine.preparation.wait(180)
        for stream in streams:
            if chunk == 3:
                stream.apply(Control.of({"prompt": "a fox", "prompt_change": "cut", "camera_x": 0.5}))
            stream.generate(stream.info.frames_per_chunk)
        while any(stream.busy for stream in streams):
            engine.tick()
            pictures += [frame.image for stream in streams for frame in stream.pull()]
    for stream in streams:
        stream.close()
    return pictures


def check_close(pictures: Sequence[Picture], wanted: Sequence[Picture]) -> None:
    """Rows are computed one by one, which may round the last bit differently: one level of 255."""
    assert len(pictures) == len(wanted) > 0
    assert max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(pictures, wanted, strict=True)) <= 1


@pytest.fixture(scope="module")
def plain() -> list[Picture]:
    return render(load(None)[0])


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What an engine made and said while its parts were compiled, and its status then. root: of the store, with both
    plans."""

    pictures: list[Picture]
    notices: list[str]
    status: str
    root: Path


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Swapped:
    root = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOETROPE_PLANS", str(root))
        engine, notices = load(CopyingRecipe())
        pictures = render(engine, wait_before=SWAP_BEFORE)
        status = str(engine.preparation.status)
        engine.close()
    return Swapped(pictures=pictures, notices=notices, status=status, root=root)


def test_a_stream_goes_on_while_its_parts_are_compiled_and_swapped_in(plain: list[Picture], swapped: Swapped) -> None:
    """The state of the decoder and the cache is that of the eager chunks before."""
    check_close(swapped.pictures, plain)
    assert not swapped.notices
    assert swapped.status == "copied"
    assert {entry.key.part for entry in PlanStore(swapped.root).entries()} == {"pass", "decode"}


def test_the_next_engine_uses_stored_plans_from_its_first_chunk_on(
    swapped: Swapped, store: PlanStore, plain: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(swapped.root, store.root, dirs_exist_ok=True)
    called: list[str] = []
    load_part = CopyingRecipe.load

    def counting(recipe: CopyingRecipe, part: object, folder: Path) -> object:
        call = load_part(recipe, part, folder)  # type: ignore[arg-type]
        return lambda *inputs: (called.append(part.name), call(*inputs))[1]  # type: ignore[attr-defined]

    monkeypatch.setattr(CopyingRecipe, "load", counting)
    engine, notices = load(CopyingRecipe(loads_at_once=True))
    check_close(render(engine), plain)
    steps, full = 5, 2  # passes of a chunk, chunks that see a full window; a cut passes the window again
    assert called.count("pass") >= 2 * steps * full
    assert called.count("decode") == 2 * (CHUNKS - 1)  # all but the first of each stream
    assert notices == [PLAIN_PASSES]
    engine.close()


def test_what_one_engine_runs_with_another_takes_over(swapped: Swapped, store: PlanStore, plain: list[Picture]) -> None:
    """As the replay of a take does: nothing else is used, and nothing is built."""
    shutil.copytree(swapped.root, store.root, dirs_exist_ok=True)
    engine, _ = load(CopyingRecipe(loads_at_once=True))
    forms = engine.preparation.forms
    engine.close()
    assert [(form.part, form.recipe) for form in forms] == [("pass", "copying"), ("decode", "copying")]
    other, notices = load(CopyingRecipe(loads_at_once=True))
    other.preparation.hold()
    assert [form.recipe for form in other.preparation.forms] == ["", ""]
    assert other.preparation.missing(forms) == []
    assert [other.preparation.take_over(form) for form in forms] == ["", ""]
    check_close(render(other), plain)
    assert other.preparation.forms == forms
    assert notices == [PLAIN_PASSES]
    other.close()
    shutil.rmtree(store.root / "plans")
    assert other.preparation.missing(forms) == list(forms)


@pytest.mark.soak
def test_builds_that_fail_leave_the_stream_as_it_is_and_say_why(plain: list[Picture], store: PlanStore) -> None:
    engine, notices = load(CopyingRecipe(fails="error"), decode=CopyingRecipe(fails="killed"))
    check_close(render(engine, wait_before=0), plain)
    failed = [notice for notice in notices if notice.startswith("copied: The ")]
    assert len(failed) == 2, notices
    assert failed[0].startswith("copied: The copier is out of toner. Refill it. pass goes on as it is.")
    assert failed[1].startswith("copied: The process that compiles was ended by signal 9.")
    assert "decode goes on as it is" in failed[1]
    assert not store.entries()
    engine.close()


def test_closing_an_engine_ends_its_preparation(store: PlanStore) -> None:
    engine, _ = load(CopyingRecipe())
    engine.close()
    assert isinstance(engine.preparation, PlanPreparation)
    assert engine.preparation.building is None
    assert not store.entries()
