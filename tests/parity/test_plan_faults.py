"""Faults of real plans beside a stream of mini-image: the stream goes on, and nothing broken is ever loaded.

The decoder's plan is OpenVINO's in int8. Each test compares the frames with those of the network as it is, up to the
tick in which a plan takes over.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.backends.build_job import BuildProcess
from pipelines.backends.openvino import library, recipe, runtime
from pipelines.backends.openvino.library import NNCF, OPENVINO, refusal_of
from pipelines.backends.table import choose_backend
from pipelines.core.controls import Control
from pipelines.core.errors import ModelError
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.load import load_engine
from tests.fakes.prepared_image import INT8, OPTIONS, build_decoder, loads
from trt.store import PlanStore

_MISSING = refusal_of(OPENVINO, NNCF)
pytestmark = pytest.mark.skipif(_MISSING is not None, reason="" if _MISSING is None else _MISSING.message)
ROOT = Path(__file__).parents[2]
AT_ONCE = replace(INT8, loads_at_once=True)
CPU = torch.device("cpu")
FRAMES = 4


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the decoder's plan."""
    folder = tmp_path_factory.mktemp("plans")
    build_decoder(PlanStore(folder))
    return folder


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanStore:
    """An empty store, which engines use."""
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path / "plans"))
    return PlanStore()


@pytest.fixture
def stored(store: PlanStore, built: Path) -> PlanStore:
    """The store with a copy of the plan."""
    shutil.copytree(built, store.root)
    return store


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture(scope="module")
def plain() -> list[Frame]:
    engine = load_engine("mini-image", replace(OPTIONS, backend="eager"), notice=lambda text: None)
    assert isinstance(engine, ImageEngine)
    return render(engine)


def render(engine: ImageEngine) -> list[Frame]:
    with engine.open(Control.of({"prompt": "a lighthouse", "seed": 3})) as stream:
        frames: list[Frame] = []
        for _ in range(FRAMES):
            stream.generate()
            engine.tick()
            frames += stream.pull()
        return [*frames, *stream.flush()]


def is_plain(frames: Sequence[Frame], plain: Sequence[Frame]) -> bool:
    assert len(frames) == len(plain) == FRAMES
    return all(np.array_equal(one.image, other.image) for one, other in zip(frames, plain, strict=True))


def recipes_in_use(engine: ImageEngine) -> list[str]:
    return [form.recipe for form in engine.preparation.forms]


# -- what is stored is broken ------------------------------------------------------------------------------------------


def test_a_whole_plan_is_used(stored: PlanStore, plain: list[Frame]) -> None:
    """So that the tests below would see one that is used although it is broken."""
    engine = loads(AT_ONCE)("mini-image", OPTIONS)
    assert recipes_in_use(engine) == ["openvino-int8"]
    assert not is_plain(render(engine), plain)
    engine.close()


@pytest.mark.parametrize("spoil", ["truncated", "a flipped bit", "removed", "key of another machine"])
def test_a_spoilt_plan_is_moved_aside_and_the_stream_starts_without(
    stored: PlanStore, plain: list[Frame], notices: list[str], spoil: str
) -> None:
    [entry] = stored.entries()
    file = entry.folder / "part.bin"
    if spoil == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif spoil == "removed":
        file.unlink()
    elif spoil == "a flipped bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        record = entry.folder.parent / "plan.json"
        wanted = json.loads(record.read_text())
        wanted["key"]["options"] = wanted["key"]["options"].replace("cpu=", "cpu=amx_int8,")
        record.write_text(json.dumps(wanted))
    engine = loads(AT_ONCE, notices)("mini-image", OPTIONS)
    assert recipes_in_use(engine) == [""]
    assert is_plain(render(engine), plain)
    assert stored.entries() == []
    [notice] = [notice for notice in notices if "is broken" in notice]
    assert "it is not used, and was moved to" in notice
    engine.close()


def test_the_plan_of_another_processor_is_not_found(
    stored: PlanStore, plain: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "cpu_features", lambda: ("avx2", "avx_vnni"))
    engine = loads(AT_ONCE)("mini-image", OPTIONS)
    assert recipes_in_use(engine) == [""]
    assert is_plain(render(engine), plain)
    engine.close()
    assert len(stored.entries()) == 1, "it stays, for the machine that it fits"


def test_a_plan_of_another_version_of_openvino_is_not_loaded(
    stored: PlanStore, plain: list[Frame], notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even under the key of this version, as if two installations were mixed."""
    monkeypatch.setattr(recipe, "_read_facts", lambda folder: {"openvino": "2026.4.0rc"})
    engine = loads(AT_ONCE, notices)("mini-image", OPTIONS)
    assert recipes_in_use(engine) == [""]
    assert engine.preparation.wait(60)
    assert is_plain(render(engine), plain)
    assert "compiled for OpenVINO 2026.4.0rc" in engine.preparation.status.failed
    engine.close()


# -- the build fails ---------------------------------------------------------------------------------------------------


def until_building(engine: ImageEngine, step: str) -> BuildProcess:
    """Return the process that builds, once it is at that step."""
    deadline_s = time.monotonic() + 120
    while step not in engine.preparation.status.step:
        assert time.monotonic() < deadline_s, engine.preparation.status
        time.sleep(0.02)
    process = engine.preparation.building  # type: ignore[attr-defined]
    assert isinstance(process, BuildProcess)
    return process


@pytest.mark.soak
def test_a_build_that_is_killed_is_said_and_the_next_one_succeeds(
    store: PlanStore, plain: list[Frame], notices: list[str]
) -> None:
    engine = loads(INT8, notices)("mini-image", OPTIONS)
    until_building(engine, "converting").stop()
    assert engine.preparation.wait(60)
    assert is_plain(render(engine), plain)
    assert "The process that compiles was ended by signal 9." in engine.preparation.status.failed
    assert any("was ended by signal 9" in notice for notice in notices)
    engine.close()
    assert store.entries() == []
    build_decoder(store)
    assert len(store.entries()) == 1
    assert not list(store.root.glob("building/*")), "what the killed build left is gone"


FULL = """
import sys
from tests.fakes.prepared_image import INT8, OPTIONS, loads
from pipelines.core.controls import Control

notices = []
engine = loads(INT8, notices)("mini-image", OPTIONS)
assert engine.preparation.wait(120)
with engine.open(Control.of({"prompt": "a lighthouse"})) as stream:
    for _ in range(4):
        stream.generate()
        engine.tick()
    print(len(stream.flush()) + len(stream.pull()), flush=True)
print(engine.preparation.status.failed)
print([form.plan for form in engine.preparation.forms], *notices)
engine.close()
"""


@pytest.mark.soak
def test_a_full_disk_is_said_and_the_stream_goes_on(tmp_path: Path) -> None:
    """On a disk in memory that only this process sees, with room for half of the plan."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=400k plans {disk} && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system lets no process mount a disk of its own")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", FULL],
        cwd=ROOT,
        env={**os.environ, "ZOETROPE_PLANS": str(disk)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames, failed, others = done.stdout.splitlines()
    assert frames == "4"
    assert failed.startswith(f"int8 (OpenVINO): There is no space left for the plan in {disk}")
    assert "`zoetrope plans prune`" in failed
    assert others == f"[''] {failed}"


@pytest.mark.soak
def test_two_engines_build_a_plan_once(store: PlanStore, plain: list[Frame]) -> None:
    engines = [loads(INT8)("mini-image", OPTIONS) for _ in range(2)]
    steps: list[set[str]] = [set(), set()]
    while not all(engine.preparation.wait(0.01) for engine in engines):
        for engine, seen in zip(engines, steps, strict=True):
            seen.add(engine.preparation.status.step)
    waited = "Another process is building the plan of decode; waiting for it."
    assert sorted((waited in seen, "decode: converting to OpenVINO" in seen) for seen in steps) == [
        (False, True),
        (True, False),
    ]
    [entry] = store.entries()
    for engine in engines:
        assert not is_plain(render(engine), plain)
        [form] = engine.preparation.forms
        assert form.files == entry.contents
        engine.close()
    assert not list(store.root.glob("building/*"))


@pytest.mark.parametrize("here", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_library_that_builds_and_is_missing_is_named(
    here: bool, store: PlanStore, plain: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """here: already when the model was loaded."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['nncf'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if here:
        installed = library.installed_version
        monkeypatch.setattr(recipe, "installed_version", lambda name: "" if name == "nncf" else installed(name))
    engine = loads(INT8)("mini-image", OPTIONS)
    assert engine.preparation.wait(120)
    assert is_plain(render(engine), plain)
    failed = engine.preparation.status.failed
    if here:
        assert failed.startswith('int8 (OpenVINO): NNCF is not installed. Install it: pip install "nncf>=3.4,<4.0".')
    else:
        assert failed.startswith(
            "int8 (OpenVINO): Files or libraries have changed since mini-image was loaded (options: "
        )
        assert "nncf=," in failed
    engine.close()


# -- OpenVINO is missing or of another version -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "because"),
    [
        ("", "OpenVINO is not installed"),
        ("2025.3.0", "OpenVINO 2025.3.0 is not a version that Zoetrope was tested with"),
        ("2027.0.0", "OpenVINO 2027.0.0 is not a version that Zoetrope was tested with"),
    ],
)
def test_without_openvino_auto_streams_and_says_why_and_a_request_is_refused(
    stored: PlanStore, plain: list[Frame], monkeypatch: pytest.MonkeyPatch, version: str, because: str
) -> None:
    installed = library.installed_version
    monkeypatch.setattr(library, "installed_version", lambda name: version if name == "openvino" else installed(name))
    choice = choose_backend("auto", "image", CPU)
    assert choice.backend.name == "eager"
    assert because in choice.reason
    engine = load_engine("mini-image", replace(OPTIONS, backend="auto"), notice=lambda text: None)
    assert isinstance(engine, ImageEngine)
    assert is_plain(render(engine), plain)
    engine.close()
    with pytest.raises(ModelError, match=because) as caught:
        load_engine("mini-image", replace(OPTIONS, backend="openvino"), notice=lambda text: None)
    assert 'pip install "openvino>=2026.4,<2027.0"' in caught.value.remedy
