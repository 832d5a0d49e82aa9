"""Owns the recipes of TensorRT and TensorRT-RTX, which build plans of parts. trt/ does the work.

Independent of engines and of where plans are kept.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError
from trt.build import BuildOptions, build_plan
from trt.errors import PlanError, PlanSpaceError
from trt.library import FLAVOURS, Capability, load_library

if TYPE_CHECKING:
    import torch

    from pipelines.core.parts import Part, PartCall, Tensors
    from trt.library import Library

_LARGEST_REFIT_ERROR = 0.1
"""Relative; ten times that of float16 in a large network. A missing bias costs more."""
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "denoise": ("denoised",),
    "encode": ("latents",),
    "decode": ("images",),
    "pass": ("velocity", "keys", "values"),
}
"""The names of a part's outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTRecipe:
    """Builds a part with one of the two libraries, and runs it on a card. A `Recipe`.

    name: "tensorrt" or "tensorrt-rtx". check: whether ONNX Runtime runs the exported part on the CPU, beside PyTorch,
    before the build.
    """

    name: str
    options: BuildOptions = field(default_factory=BuildOptions)
    check: bool = True
    loads_at_once: bool = False
    steps: int = 3

    @property
    def title(self) -> str:
        """See `Recipe`."""
        return "TensorRT-RTX" if self.name == "tensorrt-rtx" else "TensorRT"

    @property
    def samples(self) -> int:
        """One recorded input, for the check."""
        return 1

    @property
    def bakes_weights(self) -> bool:
        """Unless weights can be changed in the loaded plan."""
        return not self.options.refit

    def refusal(self, device: torch.device) -> ModelError | None:
        """Return why plans cannot be built for this device; None if they can. The CPU stands for no card."""
        error = FLAVOURS[self.name].refusal(_capability(device))
        return ModelError(error.message, error.remedy) if error else None

    def open_axes(self, part: Part) -> Mapping[str, int]:
        """See `Recipe`: none, since profiles of one shape are the fastest and need the least memory."""
        return {}

    def key(self, part: Part) -> Mapping[str, str]:
        """See `Recipe`. A plan of TensorRT-RTX depends on no card and no driver."""
        device = _device_of(part)
        library = self._library(device)
        named = {
            "precision": "as the network",
            "options": str(self.options),
            "libraries": f"{self.name} {library.version}, torch {_version('torch')}, onnxscript "
            f"{_version('onnxscript')}",
        }
        if library.flavour.portable:
            return {**named, "device": f"compute capability {'7.5' if self.options.turing else '8.0 and newer'}"}
        return {**named, "device": _card(device), "driver": _driver()}

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """See `Recipe`. Exports the part, checks the export, builds the plan."""
        from trt.export import export_onnx
        from trt.onnx_check import check_export

        library = self._library(_device_of(part))
        inputs = dict(zip(part.inputs, samples[0], strict=True)) if samples else part.inputs
        with _model_errors(), tempfile.TemporaryDirectory(dir=folder.parent) as work:
            progress(f"{part.name}: exporting")
            exported = export_onnx(part.module, inputs, OUTPUTS[part.name], Path(work))
            check = "not checked"
            if self.check:
                progress(f"{part.name}: checking the exported network")
                check = str(check_export(exported, part.module, inputs))
            build_plan(
                library,
                exported,
                folder,
                options=self.options,
                check=check,
                report=lambda text: progress(f"{part.name}: {text}"),
            )

    def load(self, part: Part, folder: Path) -> PartCall:
        """See `Recipe`. Raises ModelError without a card on which the plan runs.

        A plan built with `refit` is given the part's weights, and compared with the part.
        """
        from trt.runner import PlanRunner
        from trt.streams import CudaStreams
        from trt.tensors import check_inputs
        from trt.weights import weights_of

        device = _device_of(part)
        library = self._library(device)
        if device.type != "cuda":
            raise ModelError(f"A plan of {self.name} runs on an NVIDIA card only.", "Use --device cuda.")
        inputs = tuple(part.inputs.values())
        with _model_errors():
            runner = PlanRunner(library, folder, CudaStreams(device), device)
            check_inputs(runner.inputs, inputs)
            if self.options.refit:
                runner.update(weights_of(part.module))
            runner(*inputs)
            runner.save_runtime_cache()
        if self.options.refit:
            _check_refitted(part, runner)
        return runner

    def update(self, part: Part, call: PartCall) -> None:
        """See `Recipe`."""
        from trt.runner import PlanRunner
        from trt.weights import weights_of

        assert isinstance(call, PlanRunner)
        with _model_errors():
            call.update(weights_of(part.module))

    def _library(self, device: torch.device) -> Library:
        if refusal := self.refusal(device):
            raise refusal
        with _model_errors():
            return load_library(self.name)


def card_options(name: str, device: torch.device, *, refit: bool = False) -> BuildOptions:
    """Return the options for building for a device's card; the CPU stands for any card of 8.0 and newer."""
    return BuildOptions(refit=refit, turing=FLAVOURS[name].portable and _capability(device) == (7, 5))


def _check_refitted(part: Part, call: PartCall) -> None:
    """Raise ModelError unless a call gives what the part gives, on noise: TensorRT 11.3 drops biases when it refits."""
    import torch

    from trt.onnx_check import relative_error

    inputs = [torch.randn_like(t) if t.is_floating_point() else t for t in part.inputs.values()]
    with torch.no_grad():
        pairs = zip(call(*inputs), part.module(*inputs), strict=True)
        error = max(relative_error(got, wanted) for got, wanted in pairs)
    if not error <= _LARGEST_REFIT_ERROR:
        raise ModelError(
            f"The refitted plan of {part.name} differs from the network by {error:.2f} (relative).",
            "Install tensorrt 11.4 or newer, or use another backend with LoRAs.",
        )


def _device_of(part: Part) -> torch.device:
    return next(iter(part.inputs.values())).device


def _capability(device: torch.device) -> Capability | None:
    if device.type != "cuda":
        return None
    import torch

    return torch.cuda.get_device_capability(device)


def _card(device: torch.device) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def _driver() -> str:
    """Return the version of the NVIDIA driver, from nvidia-smi, which comes with it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.partition("\n")[0].strip() or "unknown"


def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]  # without the CUDA version that PyTorch adds


@contextmanager
def _model_errors() -> Iterator[None]:
    """Turn errors of trt/ into those that users see; a full disk is the store's to report."""
    try:
        yield
    except PlanSpaceError:
        raise
    except PlanError as error:
        raise ModelError(error.message, error.remedy) from error
