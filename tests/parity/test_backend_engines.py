"""Every backend with plans against the eager networks, call by call, in the engines' own ticks.

Two streams with mixed steps, strengths, guidance modes and prompts that change while slots are in flight (image); with
prompts and actions that change, a cached past and clean passes (video). Each result of a plan is compared with what the
network gives for the same inputs, and the plan's result is what the engine goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.backends.inductor import InductorRecipe
from pipelines.backends.openvino.recipe import OpenVINORecipe
from pipelines.backends.openvino.runtime import has_bfloat16
from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.core.parts import Part, PartCall, Tensors
from pipelines.core.types import Picture
from pipelines.image.engine import ImageEngine
from pipelines.load import load_engine
from pipelines.video.codecs.codec import decode_clip
from pipelines.video.engine import VideoEngine
from tests.fakes.two_streams import play_two_streams

SIZE = 64
"""Pixels of the image engine: small, since compilers take long."""
BUILD_S = 1200


class Compared:
    """Compares each call of a plan with the network's, by part: relative errors, and PSNR of the pictures in dB.

    picture: what a part's result looks like, in [0, 1]; None: it is not looked at.
    """

    def __init__(self, picture: Callable[[str, Tensors, torch.Tensor], torch.Tensor | None]) -> None:
        self.errors: dict[str, list[float]] = {}
        self.decibels: dict[str, list[float]] = {}
        self._picture = picture

    def watch(self, patch: pytest.MonkeyPatch, kind: type) -> None:
        """Let what a kind of recipe loads be compared."""
        load = kind.load  # type: ignore[attr-defined]
        patch.setattr(kind, "load", lambda recipe, part, folder: self._watched(part, load(recipe, part, folder)))

    def _watched(self, part: Part, call: PartCall) -> PartCall:
        def compared(*inputs: torch.Tensor) -> Tensors:
            with torch.no_grad():
                wanted = part.module(*(tensor.clone() for tensor in inputs))
                got = tuple(tensor.clone() for tensor in call(*inputs))
                self._note(part.name, inputs, got, wanted)
            return got

        return compared

    def _note(self, name: str, inputs: Tensors, got: Tensors, wanted: Tensors) -> None:
        difference = max(
            float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(got, wanted, strict=True)
        )
        self.errors.setdefault(name, []).append(difference)
        one, other = (self._picture(name, inputs, outputs[0]) for outputs in (got, wanted))
        if one is not None and other is not None:
            noise = (one.double() - other.double()).square().mean()
            self.decibels.setdefault(name, []).append(float(-10 * torch.log10(noise + 1e-12)))


def image_engine(backend: str, dtype: str) -> ImageEngine:
    engine = load_engine(
        "mini-image", device="cpu", dtype=dtype, backend=backend, width=SIZE, height=SIZE, notice=lambda text: None
    )
    assert isinstance(engine, ImageEngine)
    return engine


def play_video(engine: VideoEngine) -> list[Picture]:
    pictures: list[Picture] = []
    streams = [engine.open(Control.of({"prompt": text})) for text in ("a cat", "a robot on the beach")]
    for chunk in range(5):
        for stream in streams:
            if chunk == 3:
                stream.apply(Control.of({"prompt": "a fox", "camera_x": 0.5}))
            stream.generate(stream.info.frames_per_chunk)
        while any(stream.busy for stream in streams):
            engine.tick()
            pictures += [frame.image for stream in streams for frame in stream.pull()]
    return pictures


def check(errors: Sequence[float], decibels: Sequence[float], wanted: str) -> None:
    """wanted: "float32": 1e-4 relative, as sums are only taken in another order. "16 bits": pictures of 40 dB, as they
    are rounded at other places. "8 bits": of 30 dB on average, which is what is promised; pure noise may have 27."""
    if wanted == "float32":
        assert max(errors) <= 1e-4, max(errors)
    elif wanted == "16 bits":
        assert min(decibels) >= 40, sorted(decibels)
    else:
        assert sum(decibels) / len(decibels) >= 30, sorted(decibels)
        assert min(decibels) >= 25, sorted(decibels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eager_is_itself(dtype: str) -> None:
    one, other = (play_two_streams(image_engine("eager", dtype), SIZE) for _ in range(2))
    assert len(one) == len(other) >= 8
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.soak
@pytest.mark.timeout(BUILD_S)
@pytest.mark.parametrize(
    ("backend", "dtype", "wanted"),
    [
        ("compiled", "float32", "float32"),
        ("compiled", "bfloat16", "16 bits"),
        ("openvino-bf16", "bfloat16", "16 bits"),
        ("openvino", "bfloat16", "8 bits"),
        ("openvino", "float32", "8 bits"),
    ],
)
def test_the_image_engine(
    backend: str, dtype: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    _skip_unless_it_runs(backend, "image")
    eager = image_engine("eager", dtype)

    def picture(name: str, inputs: Tensors, result: torch.Tensor) -> torch.Tensor:
        return (result if name == "decode" else eager.core.codec.decode(result)) / 2 + 0.5

    compared = Compared(picture)
    for kind in (InductorRecipe, OpenVINORecipe):
        compared.watch(monkeypatch, kind)
    engine = image_engine(backend, dtype)
    assert engine.preparation.wait(BUILD_S)
    engine.tick()
    assert not engine.preparation.status.failed
    assert all(form.plan for form in engine.preparation.forms)
    compared.errors.clear()
    compared.decibels.clear()
    assert len(play_two_streams(engine, SIZE)) >= 8
    engine.close()
    assert set(compared.errors) == {"denoise", "encode", "decode"}
    for name, errors in compared.errors.items():
        check(errors, compared.decibels[name], wanted)


@pytest.mark.soak
@pytest.mark.timeout(BUILD_S)
@pytest.mark.parametrize(("backend", "wanted"), [("openvino-bf16", "16 bits"), ("openvino", "8 bits")])
def test_the_video_engine(backend: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a pass is that of its estimate half way, x - v / 2; the velocity of clean passes, which nobody
    uses, is left out."""
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    _skip_unless_it_runs(backend, "video")
    choices: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "notice": lambda text: None}
    eager = load_engine("mini-video", backend="eager", **choices)
    assert isinstance(eager, VideoEngine)
    model = eager.core.model
    clean = model.transformer.condition_embedder.time(torch.zeros(1, 3))[0]

    def picture(name: str, inputs: Tensors, result: torch.Tensor) -> torch.Tensor | None:
        if name == "decode":
            return result.float() / 255
        if (inputs[1] - clean).norm() < 0.4 * clean.norm():
            return None
        return decode_clip(model.codec, inputs[0] - result / 2)

    compared = Compared(picture)
    compared.watch(monkeypatch, OpenVINORecipe)
    engine = load_engine("mini-video", backend=backend, **choices)
    assert isinstance(engine, VideoEngine)
    assert engine.preparation.wait(BUILD_S)
    with torch.inference_mode():
        assert len(play_video(engine)) > 0
    assert not engine.preparation.status.failed
    engine.close()
    assert set(compared.decibels) == {"pass", "decode"}
    for name, decibels in compared.decibels.items():
        check(compared.errors[name], decibels, wanted)


def _skip_unless_it_runs(backend: str, kind: str) -> None:
    refusal = BACKENDS[backend].refusal(kind, torch.device("cpu"))
    if refusal is not None or (backend == "openvino-bf16" and not has_bfloat16()):
        pytest.skip(refusal.message if refusal else "the processor has no bfloat16")
