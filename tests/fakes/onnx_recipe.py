"""ONNX Runtime in the place of TensorRT's runner: executes on the CPU exactly what trt/ exports.

`OnnxRecipe` is a recipe whose calls follow changed weights as a refitted plan does. `OnnxBackend` runs the parts of an
image engine with it, and compares each call with the network's own result.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from pipelines.backends.base import Backend
from pipelines.backends.plan_keys import plan_key
from pipelines.backends.tensorrt import OUTPUTS
from pipelines.core.contracts import Notify
from pipelines.core.parts import Part, PartCall, Tensors, signature_of
from pipelines.image.model import Condition, ImageNetworks, ImageRuntime
from pipelines.image.parts import decode_part, denoise_inputs, denoise_part, encode_part
from pipelines.image.runtime import plain_runtime
from trt.build import PlanDescription
from trt.export import export_onnx
from trt.onnx_check import OnnxRun, relative_error
from trt.store import PlanStore
from trt.weights import changed_constants, weights_of

_DTYPES = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16, 7: torch.int64}


class OnnxCall:
    """A `PartCall` in ONNX Runtime; `update` replaces weights as a refit does."""

    def __init__(self, folder: Path) -> None:
        self._file, self._description = folder / "model.onnx", PlanDescription.read(folder)
        outputs = onnx.load(str(self._file), load_external_data=False).graph.output
        self._dtypes = [_DTYPES[output.type.tensor_type.elem_type] for output in outputs]
        self._constants: dict[str, torch.Tensor] = {}
        self._make()

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        named = dict(zip(self._description.inputs, inputs, strict=True))
        return tuple(output.to(dtype) for output, dtype in zip(self._run(named), self._dtypes, strict=True))

    def update(self, weights: Mapping[str, torch.Tensor]) -> int:
        """As `PlanRunner.update`."""
        sources = self._description.sources
        changed = changed_constants(sources, weights).keys() | self._constants.keys()
        self._constants = {name: sources[name].constant(weights[sources[name].parameter]) for name in changed}
        self._make()
        return len(changed)

    def _make(self) -> None:
        raised = torch.bfloat16 in self._dtypes or "bfloat16" in self._description.check
        self._run = OnnxRun(self._file, raised=raised, constants=self._constants, threads=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRecipe:
    """A `Recipe` for tests. bakes_weights: False: loaded calls have the weights of the part given to `load`."""

    name: str = "onnx"
    title: str = "ONNX Runtime"
    steps: int = 1
    samples: int = 0
    bakes_weights: bool = False
    loads_at_once: bool = False

    def open_axes(self, part: Part) -> Mapping[str, int]:
        return {}

    def key(self, part: Part) -> Mapping[str, str]:
        return {"device": "CPU", "libraries": f"onnx {onnx.__version__}"}

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        progress(f"{part.name}: exporting")
        with tempfile.TemporaryDirectory() as work:
            exported = export_onnx(part.module, part.inputs, OUTPUTS[part.name], Path(work))
            for file in Path(work).iterdir():
                shutil.move(str(file), folder)
        PlanDescription(
            inputs=exported.inputs,
            outputs=exported.outputs,
            refit=not self.bakes_weights,
            sources=exported.sources,
            library="onnxruntime",
            check=str({str(p.dtype).removeprefix("torch.") for p in part.module.parameters()}),
        ).write(folder)

    def update(self, part: Part, call: PartCall) -> None:
        assert isinstance(call, OnnxCall)
        call.update(weights_of(part.module))

    def load(self, part: Part, folder: Path) -> OnnxCall:
        call = OnnxCall(folder)
        if not self.bakes_weights:
            call.update(weights_of(part.module))
        return call


@dataclass
class Compared:
    """Relative errors of the calls, and the parts whose exports were used, one for each shape."""

    errors: dict[str, list[float]] = field(default_factory=dict)
    exports: list[str] = field(default_factory=list)


class Exported:
    """Parts, exported at each shape that is called unless that is in the store; every call is compared with the
    network's."""

    def __init__(self, compared: Compared, store: PlanStore, model: str) -> None:
        self._compared, self._store, self._model = compared, store, model
        self._calls: dict[Any, OnnxCall] = {}

    def run(self, part: Part) -> torch.Tensor:
        inputs = tuple(part.inputs.values())
        key = (part.name, signature_of(inputs))
        if key not in self._calls:
            recipe = OnnxRecipe()
            with torch.inference_mode(False):
                clones = {name: tensor.clone() for name, tensor in part.inputs.items()}
                copied = replace(part, inputs=clones)

                def build(folder: Path) -> None:
                    recipe.build(copied, [], folder, lambda text: None)

                folder = self._store.build(plan_key(recipe, copied, self._model), build)
                self._calls[key] = recipe.load(copied, folder)
            self._compared.exports.append(part.name)
        (got,) = self._calls[key](*inputs)
        (wanted,) = part.module(*inputs)
        self._compared.errors.setdefault(part.name, []).append(relative_error(got, wanted))
        return got


class ExportedDenoiser:
    def __init__(self, denoiser: nn.Module, exported: Exported) -> None:
        self._denoiser, self._exported = denoiser, exported

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self._exported.run(denoise_part(self._denoiser, denoise_inputs(latents, timestep, condition)))


class ExportedCodec:
    def __init__(self, codec: Any, exported: Exported) -> None:
        self._codec, self._exported = codec, exported
        self.latent_channels, self.factor, self.margin = codec.latent_channels, codec.factor, codec.margin

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self._exported.run(encode_part(self._codec, images))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._exported.run(decode_part(self._codec, latents))


@dataclass(frozen=True, kw_only=True)
class OnnxBackend(Backend):
    """Runs image models in ONNX Runtime. store: of what is exported. cast: what to do to the networks before."""

    store: PlanStore
    compared: Compared
    cast: Callable[[ImageNetworks], ImageNetworks] = lambda networks: networks

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        runtime, exported = plain_runtime(self.cast(networks)), Exported(self.compared, self.store, "mini-image")
        assert isinstance(runtime.denoiser, nn.Module)
        return replace(
            runtime,
            backend=self.name,
            denoiser=ExportedDenoiser(runtime.denoiser, exported),
            codec=ExportedCodec(runtime.codec, exported),
        )
