"""An engine whose parts are compiled beside it: what it makes before, while and after they are swapped in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines.backends.background import PlanPreparation
from pipelines.backends.base import Backend
from pipelines.backends.planned_image import planned_image
from pipelines.backends.recipe import Recipe
from pipelines.backends.table import BACKENDS, backend_table
from pipelines.core.controls import Control
from pipelines.core.origin import Origin
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageNetworks, ImageRuntime
from pipelines.image.runtime import plain_runtime
from pipelines.load import load_engine
from tests.fakes.copying_recipe import CopyingRecipe
from trt.store import PlanStore

FRAMES = 6
SIZE = {"width": 64, "height": 64}
ORIGIN = Origin(
    model="mini-image",
    module="pipelines.load",
    function="load_engine",
    arguments={"model": "mini-image", "backend": "eager", "device": "cpu", "prepare": False, **SIZE},
)


@dataclass(frozen=True, kw_only=True)
class PreparedBackend(Backend):
    """Eager, but one part is compiled by a recipe."""

    recipe: Recipe
    part: str = "decode"
    name: str = "prepared"
    purpose: str = "tests"
    notices: list[str] = field(default_factory=list)

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        networks = replace(networks, origin=ORIGIN, notice=self.notices.append)
        return replace(planned_image(networks, plain_runtime(networks), {self.part: self.recipe}), backend=self.name)


@pytest.fixture(scope="module", autouse=True)
def at_once() -> Iterator[None]:
    """Work on what is wanted begins almost at once, instead of when nothing more was wanted for two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        name = "pipelines.backends.planned_image.PlanPreparation"
        patch.setattr(name, partial(PlanPreparation, settle_s=0.1))
        yield


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanStore:
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    return PlanStore()


@pytest.fixture(scope="module")
def plain() -> list[Frame]:
    return render(load_engine("mini-image", backend="eager", device="cpu", notice=lambda text: None, **SIZE))


def load(recipe: Recipe, part: str = "decode") -> tuple[ImageEngine, list[str]]:
    backend = PreparedBackend(recipe=recipe, part=part)
    table = backend_table(*BACKENDS.values(), backend)
    engine = load_engine(
        "mini-image", backend="prepared", backends=table, device="cpu", notice=lambda text: None, **SIZE
    )
    assert isinstance(engine, ImageEngine)
    return engine, backend.notices


def render(engine: object) -> list[Frame]:
    assert isinstance(engine, ImageEngine)
    with engine.open(Control.of({"prompt": "a lighthouse", "seed": 3})) as stream:
        frames: list[Frame] = []
        for _ in range(FRAMES):
            stream.generate()
            engine.tick()
            frames += stream.pull()
        return [*frames, *stream.flush()]


def check_equal(frames: Sequence[Frame], wanted: Sequence[Frame]) -> None:
    assert len(frames) == len(wanted) == FRAMES
    for one, other in zip(frames, wanted, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def preparation_of(engine: ImageEngine) -> PlanPreparation:
    preparation = engine.core.runtime.preparation
    assert isinstance(preparation, PlanPreparation)
    return preparation


def runs(engine: ImageEngine) -> list[str]:
    """The recipes of the part's forms; "" for the network as it is."""
    return [form.recipe for form in engine.preparation.forms]


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What an engine made before its plan was built and afterwards, its statuses then, and what it said. root: of the
    store with the plan."""

    before: list[Frame]
    after: list[Frame]
    built: str
    taken_over: str
    notices: list[str]
    root: Path


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Swapped:
    root = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOETROPE_PLANS", str(root))
        engine, notices = load(CopyingRecipe())
        before = render(engine)
        assert preparation_of(engine).wait(120)
        built = str(engine.preparation.status)
        after = render(engine)
        taken_over = str(engine.preparation.status)
        engine.close()
    return Swapped(before=before, after=after, built=built, taken_over=taken_over, notices=notices, root=root)


@pytest.fixture
def stored(store: PlanStore, swapped: Swapped) -> PlanStore:
    """The store with the plan in it."""
    shutil.copytree(swapped.root, store.root, dirs_exist_ok=True)
    return store


def test_a_stream_goes_on_while_its_parts_are_compiled_and_swapped_in(plain: list[Frame], swapped: Swapped) -> None:
    check_equal(swapped.before, plain)  # the plan is not there yet
    assert swapped.built == "PyTorch", "built, and not yet taken over"
    check_equal(swapped.after, plain)
    assert swapped.taken_over == "copied"
    assert not swapped.notices
    [entry] = PlanStore(swapped.root).entries()
    assert (entry.key.recipe, entry.key.part, entry.key.model) == ("copying", "decode", "mini-image")


def test_the_next_engine_uses_a_stored_plan_from_its_first_frame_on(
    stored: PlanStore, plain: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load_part = CopyingRecipe.load
    monkeypatch.setattr(
        CopyingRecipe,
        "load",
        lambda recipe, part, folder: (loaded.append(part.name), load_part(recipe, part, folder))[1],
    )
    engine, notices = load(CopyingRecipe(loads_at_once=True))
    assert loaded == ["decode"]
    check_equal(render(engine), plain)
    engine.close()
    assert not notices


@pytest.mark.parametrize("at_once", [False, True])
def test_a_frozen_engine_uses_what_is_stored_from_its_first_frame_on(
    stored: PlanStore, plain: list[Frame], at_once: bool
) -> None:
    engine, notices = load(CopyingRecipe(loads_at_once=at_once))
    assert not engine.preparation.freeze()
    assert runs(engine) == ["copying"]
    check_equal(render(engine), plain)
    engine.close()
    assert not notices


def test_a_frozen_engine_builds_for_the_next_one(store: PlanStore, plain: list[Frame]) -> None:
    engine, notices = load(CopyingRecipe())
    assert engine.preparation.freeze()
    assert preparation_of(engine).wait(120)
    assert len(store.entries()) == 1
    check_equal(render(engine), plain)
    assert runs(engine) == [""], "a plan was taken over in the middle"
    engine.close()
    following, _ = load(CopyingRecipe())
    assert not following.preparation.freeze()
    assert runs(following) == ["copying"]
    following.close()
    assert not notices


@pytest.mark.soak
def test_a_smaller_batch_gets_a_form_of_its_own_once_it_is_steady(store: PlanStore, plain: list[Frame]) -> None:
    engine, _ = load(CopyingRecipe(), part="denoise")
    assert preparation_of(engine).wait(120)  # the rehearsal: two steps, two slots
    check_equal(render(engine), plain)
    with engine.open(Control.of({"prompt": "a lighthouse", "steps": 1})) as stream:
        for _ in range(60):
            stream.generate()
            engine.tick()
            stream.pull()
    assert preparation_of(engine).wait(120)
    sizes = sorted(entry.key.inputs.partition("[")[2].partition(",")[0] for entry in store.entries())
    assert sizes == ["1", "2"]
    check_equal(render(engine), plain)
    engine.close()


def test_other_weights_need_another_plan(stored: PlanStore, plain: list[Frame]) -> None:
    engine, notices = load(CopyingRecipe())
    assert preparation_of(engine).wait(120)
    engine.tick()
    assert runs(engine) == ["copying"]
    preparation_of(engine).weights_changed(1.0)
    assert runs(engine) == [""]
    check_equal(render(engine), plain)
    assert preparation_of(engine).wait(120)
    check_equal(render(engine), plain)
    assert runs(engine) == ["copying"]  # the same weights: it was stored
    assert not notices
    engine.close()


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("error", "copied: The copier is out of toner. Refill it. decode goes on as it is."),
        ("killed", "copied: The process that compiles was ended by signal 9."),
    ],
)
def test_a_build_that_fails_leaves_the_stream_as_it_is_and_says_why(
    fails: str, said: str, plain: list[Frame], store: PlanStore
) -> None:
    engine, notices = load(CopyingRecipe(fails=fails))
    assert preparation_of(engine).wait(120)
    check_equal(render(engine), plain)
    assert any(notice.startswith(said) for notice in notices), notices
    assert preparation_of(engine).status.failed.startswith(said)
    assert runs(engine) == [""]
    assert not store.entries()
    engine.close()


def test_a_damaged_plan_is_never_loaded_and_made_anew(stored: PlanStore, plain: list[Frame]) -> None:
    [entry] = stored.entries()
    weights = entry.folder / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    engine, notices = load(CopyingRecipe(loads_at_once=True))
    assert preparation_of(engine).wait(120)
    check_equal(render(engine), plain)
    assert runs(engine) == ["copying"]
    [aside] = (stored.root / "quarantine").iterdir()
    [notice] = notices
    assert notice.startswith(f"The plan {entry.folder.parent.name} is broken (weights.pt has ")
    assert notice.endswith(f"it is not used, and was moved to {aside}.")
    engine.close()


def test_the_process_that_compiles_ends_with_the_one_that_started_it() -> None:
    child = (
        "import time; from pipelines.backends.build_job import end_with_parent; end_with_parent(); "
        "print(1, flush=True); time.sleep(60)"
    )
    program = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE); child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        started = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    assert not psutil.wait_procs([started], timeout=20)[1]


def test_closing_an_engine_ends_the_process_that_compiles(store: PlanStore) -> None:
    engine, _ = load(CopyingRecipe())
    preparation = preparation_of(engine)
    deadline = time.monotonic() + 60
    while preparation.building is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process = preparation.building
    assert process is not None
    engine.close()
    assert process.ended
    assert not store.entries()
