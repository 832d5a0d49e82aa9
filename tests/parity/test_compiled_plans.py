"""Parts of the bundled models compiled by torch.compile's compiler to plans, against the same parts run eagerly.

Float32 within 1e-4 relative: sums are only taken in another order. bfloat16 at least 40 dB: it is rounded at other
places.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pipelines.backends.inductor import InductorRecipe
from pipelines.backends.plan_keys import plan_key
from pipelines.core.parts import Part, PartCall
from pipelines.image.engine import ImageEngine
from pipelines.load import load_engine
from trt.store import PlanStore

pytestmark = pytest.mark.soak  # the compiler takes a minute for a decoder

RECIPE = InductorRecipe()


def part_of(engine: ImageEngine, name: str) -> Part:
    torch.manual_seed(5)
    latents = torch.randn(2, *engine.core.latent_shape)
    inputs: Mapping[str, Mapping[str, torch.Tensor]] = {
        "decode": {"latents": latents[:1]},
        "encode": {"images": torch.rand(1, 3, engine.core.height, engine.core.width) * 2 - 1},
        "denoise": {
            "latents": latents,
            "timestep": torch.tensor([499, 20]),
            "embeds": torch.randn(2, 32, 128).to(engine.core.model.dtype),
        },
    }
    return engine.core.part(name, dict(inputs[name]))


def engine_in(dtype: str) -> ImageEngine:
    engine = load_engine("mini-image", device="cpu", dtype=dtype, backend="eager", notice=lambda text: None)
    assert isinstance(engine, ImageEngine)
    return engine


def built(part: Part, folder: Path) -> Path:
    store = PlanStore(folder)
    return store.build(plan_key(RECIPE, part, "mini-image"), lambda to: RECIPE.build(part, (), to, lambda text: None))


@torch.no_grad()
def relative_error(part: Part, call: PartCall) -> float:
    [wanted], [got] = part.module(*part.inputs.values()), call(*part.inputs.values())
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, Path]:
    """The decoder in float32, and the folder of its plan."""
    part = part_of(engine_in("float32"), "decode")
    return part, built(part, tmp_path_factory.mktemp("plans"))


def test_a_decoder_in_float32(decoder: tuple[Part, Path]) -> None:
    part, folder = decoder
    assert relative_error(part, RECIPE.load(part, folder)) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["encode", "denoise", "decode"])
def test_every_part(name: str, dtype: str, tmp_path: Path) -> None:
    part = part_of(engine_in(dtype), name)
    error = relative_error(part, RECIPE.load(part, built(part, tmp_path)))
    assert error < (1e-4 if dtype == "float32" else 0.01)  # 40 dB


def test_weights_that_change_in_place_are_seen(decoder: tuple[Part, Path]) -> None:
    part, folder = decoder
    call = RECIPE.load(part, folder)
    weight = next(p for name, p in part.module.named_parameters() if "decoder" in name and name.endswith("weight"))
    with torch.no_grad():
        saved = weight.clone()
        before = call(*part.inputs.values())[0].clone()
        weight.mul_(1.1)
        assert relative_error(part, call) < 1e-4
        assert not torch.allclose(call(*part.inputs.values())[0], before, rtol=1e-3)
        weight.copy_(saved)


LOADING = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.parity.test_compiled_plans import RECIPE, engine_in, part_of, relative_error

part = part_of(engine_in("float32"), "decode")
print(relative_error(part, RECIPE.load(part, Path(sys.argv[1]))))
"""


def test_a_damaged_compile_cache_is_never_read(decoder: tuple[Part, Path], tmp_path: Path) -> None:
    """PyTorch keeps compiled kernels by the digest of their source, and does not check them when it loads them."""
    kernels = decoder[1] / "kernels"
    files = [file for file in kernels.rglob("*") if file.is_file()]
    assert any(file.suffix == ".so" for file in files)
    for number, file in enumerate(files):
        content = bytearray(file.read_bytes())
        content[::97] = bytes(byte ^ 1 for byte in content[::97])
        copy = tmp_path / file.relative_to(kernels)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content[: len(content) // 2] if number % 2 else content)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(decoder[1])],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4
