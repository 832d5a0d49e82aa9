"""examples/add_a_backend.py: a backend of one file and one row runs image and video models, and changes no frame."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipelines.backends.table import BACKENDS, backend_table, choose_backend
from pipelines.core.controls import Control
from pipelines.load import load_engine

FILE = Path(__file__).parents[2] / "examples" / "add_a_backend.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("add_a_backend", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_the_bundled_models(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    image, video = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"mini-image, timed: 1 frames, [1-9]\d* calls of \d+ ms", image)
    assert re.fullmatch(r"mini-video, timed: 9 frames, [1-9]\d* calls of \d+ ms", video)


@pytest.mark.parametrize("model", ["mini-image", "mini-video"])
def test_its_frames_are_those_of_eager(model: str, example: ModuleType) -> None:
    timed, shown = example.TimedBackend(), []
    table = backend_table(*BACKENDS.values(), timed)
    for backend in ("eager", "timed"):
        engine = load_engine(
            model, backend=backend, backends=table, device="cpu", dtype="float32", notice=lambda text: None
        )
        with engine.open(Control.of({"prompt": "a red car", "seed": 3})) as stream:
            assert stream.info.backend == backend
            assert stream.generate(stream.info.frames_per_chunk)
            shown.append(np.stack([frame.image for frame in stream.flush()]))
        engine.close()
    assert np.array_equal(*shown)
    assert len(timed.seconds) > 0


def test_auto_takes_it_only_where_it_is_preferred(example: ModuleType) -> None:
    import torch

    cpu = torch.device("cpu")
    for preference, name in ((0, "eager"), (9, "timed")):
        table = backend_table(*BACKENDS.values(), example.TimedBackend(preference=preference))
        assert choose_backend("auto", "image", cpu, table).backend.name == name
