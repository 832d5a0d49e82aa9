"""What trt/ exports, executed by ONNX Runtime, equals the networks: in the image engine's own ticks with mixed slots,
two streams, guidance modes and live changes; in the passes of the video engine; and when weights change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.backends.plan_keys import plan_key
from pipelines.backends.table import backend_table
from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.files.loader_options import LoaderOptions
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageNetworks
from pipelines.image.parts import decode_part
from pipelines.load import load_engine
from pipelines.plans import check
from pipelines.plans.collect import image_parts
from pipelines.plans.commands import PlanRequest, Plans
from tests.fakes.onnx_recipe import Compared, OnnxBackend, OnnxCall, OnnxRecipe
from tests.fakes.prepared_image import OPTIONS, build_decoder, loads
from tests.fakes.two_streams import play_two_streams
from trt.onnx_check import FLOAT32_RELATIVE, HALF_DB, decibels
from trt.store import PlanStore
from trt.weights import weights_of

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.timeout(900)

SIZE = 64
"""Pixels: small, since every shape of batch is exported."""


def ignore(text: str) -> None:
    """Show no progress."""


def load(backend: OnnxBackend | None) -> Engine:
    table = {} if backend is None else {"backends": backend_table(backend)}
    return load_engine(
        "mini-image",
        device="cpu",
        dtype="float32",
        backend="eager" if backend is None else backend.name,
        width=SIZE,
        height=SIZE,
        notice=lambda text: None,
        **table,  # type: ignore[arg-type]
    )


def play(engine: Engine) -> list[np.ndarray]:
    frames = play_two_streams(engine, SIZE)
    engine.close()
    return frames


def half(networks: ImageNetworks) -> ImageNetworks:
    """The networks in float16, which the engine does not offer on CPUs: it is too slow there, but computes."""
    for network in (networks.unet, networks.autoencoder):
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.half() if tensor.is_floating_point() else tensor.data
    return replace(networks, dtype=torch.float16, codec_dtype=torch.float16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PlanStore:
    """Of all exports here: most tests mean the same networks, some the same shapes."""
    return PlanStore(tmp_path_factory.mktemp("exports"))


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_image_engine_of_exported_parts(store: PlanStore, tmp_path: Path, dtype: str) -> None:
    compared = Compared()
    if dtype == "float16":
        store = PlanStore(tmp_path)
    cast = half if dtype == "float16" else (lambda networks: networks)
    exported = play(load(OnnxBackend(name="onnx", purpose="", store=store, compared=compared, cast=cast)))
    assert set(compared.exports) == {"denoise", "encode", "decode"}
    assert compared.exports.count("denoise") >= 3  # batches of several sizes: slots at mixed steps, negative prompts
    worst = {part: max(errors) for part, errors in compared.errors.items()}
    limit = FLOAT32_RELATIVE if dtype == "float32" else 10 ** (-HALF_DB / 20)
    assert max(worst.values()) <= limit, {part: decibels(error) for part, error in worst.items()}
    assert len(exported) >= 8
    if dtype == "float32":
        for got, wanted in zip(exported, play(load(None)), strict=True):
            assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1  # rounding to 8 bits


def test_a_prompt_changes_nothing_that_was_exported(tmp_path: Path) -> None:
    """The comparison would fail if a value of an input had been baked in: it fails for another network's weights."""
    engine = load(None)
    assert isinstance(engine, ImageEngine)
    codec = engine.core.codec
    assert isinstance(codec, torch.nn.Module)
    part = decode_part(codec, torch.randn((1, *engine.core.latent_shape)))
    recipe = OnnxRecipe(bakes_weights=True)
    recipe.build(part, [], tmp_path, lambda text: None)
    call = recipe.load(part, tmp_path)
    other = torch.randn((1, *engine.core.latent_shape), generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(call(other)[0], part.module(other)[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        next(part.module.parameters()).mul_(0)
        for parameter in part.module.parameters():
            parameter.mul_(1.1)
        assert (call(other)[0] - part.module(other)[0]).abs().max() > 0.01


def test_changed_weights_reach_the_loaded_plan_as_by_a_refit(store: PlanStore) -> None:
    """A LoRA of the attention's projections, whose constants are transposed in the graph, and a convolution."""
    engine = load(None)
    assert isinstance(engine, ImageEngine)
    with torch.no_grad():
        recipe = OnnxRecipe()
        assert isinstance(engine.core.denoiser, torch.nn.Module)
        part = next(part for part in image_parts(engine, (3,)) if part.name == "denoise")
        values = torch.Generator().manual_seed(7)
        for tensor in part.inputs.values():
            if tensor.is_floating_point():
                tensor.normal_(generator=values)
            else:
                tensor.copy_(torch.tensor([700, 300, 500]))
        inputs = tuple(part.inputs.values())
        key = plan_key(recipe, part, "mini-image")
        files = store.build(key, lambda folder: recipe.build(part, [], folder, lambda text: None))
        call = recipe.load(part, files)
        before = call(*inputs)[0].clone()
        torch.testing.assert_close(before, part.module(*inputs)[0], rtol=0, atol=1e-4 * float(before.abs().max()))
        random = torch.Generator().manual_seed(5)
        merged = {name: p for name, p in part.module.named_parameters() if "attn" in name and "to_" in name}
        merged["conv"] = next(p for name, p in part.module.named_parameters() if name.endswith("conv_in.weight"))
        changed, saved = 0, {name: p.clone() for name, p in merged.items()}
        for parameter in merged.values():
            if parameter.dim() > 1:
                parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=random)
                changed += 1
        assert plan_key(recipe, part, "mini-image") == key  # the same files serve: weights are not in the key
        assert call.update(weights_of(part.module)) == changed > 20
        wanted = part.module(*inputs)[0]
        assert (wanted - before).abs().max() > 0.01
        torch.testing.assert_close(call(*inputs)[0], wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        again = recipe.load(part, files)
        torch.testing.assert_close(again(*inputs)[0], wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
        for name, parameter in merged.items():
            parameter.copy_(saved[name])
        call.update(weights_of(part.module))
        torch.testing.assert_close(call(*inputs)[0], before, rtol=0, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("moment", ["in use", "loaded"])
def test_changed_weights_reach_a_plan_of_a_running_engine(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a LoRA's scale moves: a plan that takes weights stays in use. moment: of the change."""
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    recipe = OnnxRecipe(loads_at_once=moment == "in use")
    build_decoder(PlanStore(), recipe)
    engine = loads(recipe)("mini-image", OPTIONS)
    eager = load_engine("mini-image", replace(OPTIONS, backend="eager"), notice=ignore)
    assert isinstance(eager, ImageEngine)
    before = shown(eager)
    assert engine.preparation.wait(60)
    for one, codec in ((engine, planned_codec(engine)), (eager, eager.core.codec)):
        with torch.no_grad():
            for name, parameter in codec.named_parameters():  # type: ignore[attr-defined]
                if "decoder" in name:
                    parameter.mul_(1.05)
        one.preparation.weights_changed(0.5)
    after = shown(engine)
    [form] = engine.preparation.forms
    assert form.recipe == "onnx"
    for got, wanted, old in zip(after, shown(eager), before, strict=True):
        assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1  # rounding to 8 bits
        assert np.abs(got.astype(int) - old.astype(int)).max() > 5
    engine.close()


def planned_codec(engine: ImageEngine) -> torch.nn.Module:
    """The codec that its plans were made of."""
    latents = torch.zeros(1, *engine.core.latent_shape)
    module = engine.preparation._forms["decode"].part({"latents": latents}).module  # type: ignore[attr-defined]
    assert isinstance(module.codec, torch.nn.Module)
    return module.codec


def shown(engine: ImageEngine) -> list[np.ndarray]:
    with engine.open(Control.of({"prompt": "a lighthouse", "seed": 3})) as stream:
        for _ in range(3):
            stream.generate()
            engine.tick()
        return [frame.image for frame in (*stream.pull(), *stream.flush())]


@pytest.mark.soak
def test_the_check_of_plans_changes_their_weights_too(store: PlanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zoetrope plans check` with ONNX Runtime in the runner's place; a plan that ignores new weights fails."""
    plans = Plans(store.root, notice=ignore, recipes={"onnx": lambda device, refit: OnnxRecipe()})
    request = PlanRequest(
        model="mini-image",
        backend="onnx",
        options=LoaderOptions(device="cpu", dtype="float32", width=SIZE, height=SIZE),
        slots=(3,),
    )
    monkeypatch.setattr(check, "_RUNS", 1)
    monkeypatch.setattr(check, "_WARM_UP", 0)
    results = list(check.check_plans(plans, request, ignore))
    assert [result.passed for result in results] == [True] * 6
    assert [result.inputs.endswith("with other weights") for result in results] == [False, True] * 3
    monkeypatch.setattr(OnnxCall, "update", lambda self, weights: 0)
    assert [result.passed for result in check.check_plans(plans, request, ignore)] == [True, False] * 3
