"""Owns the `Recipe` of OpenVINO: what its files are, what determines them, and how they are checked when built.

A folder has part.xml and part.bin, the model with some lengths left open, and part.json: the dtypes and orders of its
outputs, the version that wrote it, and the error that was measured then. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.backends.base import BackendRefusal
from pipelines.backends.calibration import VERSION as CALIBRATION_VERSION
from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError

from .library import NNCF, OPENVINO, check, core, import_openvino, installed_version, refusal_of

if TYPE_CHECKING:
    import torch

    from pipelines.core.parts import Part, PartCall, Tensors

_CHECKS = 4  # of the samples, on which the built part is compared with PyTorch instead of being calibrated
_FORM = 2  # changes whenever `build` makes other files of the same part, so that what is stored is built again
_LARGEST_ERROR = 0.25  # relative; ten times that of the bundled models in bfloat16, five times in int8


@dataclass(frozen=True, kw_only=True)
class OpenVINORecipe:
    """Compiles parts for CPUs. quantised: to int8, calibrated on samples; else in bfloat16.

    threads: that run a part; 0: as many as PyTorch has when it is loaded.
    """

    quantised: bool
    threads: int = 0
    calibration_samples: int = 40
    bakes_weights: bool = True
    loads_at_once: bool = True

    @property
    def name(self) -> str:
        """See `Recipe`."""
        return "openvino-int8" if self.quantised else "openvino-bf16"

    @property
    def title(self) -> str:
        """See `Recipe`."""
        return f"{'int8' if self.quantised else 'bfloat16'} (OpenVINO)"

    @property
    def steps(self) -> int:
        """See `Recipe`."""
        return 3 if self.quantised else 2

    @property
    def samples(self) -> int:
        """See `Recipe`."""
        return self.calibration_samples + _CHECKS if self.quantised else 0

    def refusal(self, device: torch.device, *, building: bool = True) -> BackendRefusal | None:
        """Return why it cannot build parts here (or, if not `building`, run them); None if it can."""
        from .runtime import has_bfloat16

        if device.type != "cpu":
            return BackendRefusal(because="the model is not on a CPU", message=f"{self.title} runs on CPUs only.")
        if not self.quantised and not has_bfloat16():
            return BackendRefusal(
                because="the processor has no bfloat16",
                message=f"{self.title} needs a processor with bfloat16 (AVX512_BF16, AMX).",
                remedy="Use --backend openvino or eager.",
            )
        return refusal_of(OPENVINO, NNCF) if self.quantised and building else refusal_of(OPENVINO)

    def open_axes(self, part: Part) -> Mapping[str, int]:
        """See `Recipe`."""
        from .convert import dynamic_axes

        return {name: axis for name, axis in dynamic_axes(part).items() if axis is not None}

    def key(self, part: Part) -> Mapping[str, str]:
        """See `Recipe`. A file serves any length of the axes that `convert.dynamic_axes` names, such as the rows."""
        from .runtime import cpu_features

        versions = {"openvino": installed_version("openvino"), "form": str(_FORM)}
        if self.quantised:
            versions |= {"nncf": installed_version("nncf"), "calibration": str(CALIBRATION_VERSION)}
        return {**versions, "cpu": ",".join(cpu_features())}

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """See `Recipe`. Takes the memory of three copies of the weights in float32."""
        check(*((OPENVINO, NNCF) if self.quantised else (OPENVINO,)))
        openvino = import_openvino()
        from .convert import converted
        from .norms import rewrite_group_norms
        from .quantise import quantised

        progress(f"{part.name}: converting to OpenVINO")
        with converted(part, narrow_weights=not self.quantised) as model:
            if len(model.inputs) != len(part.inputs):
                raise ModelError(
                    f"OpenVINO's form of the part {part.name} has {len(model.inputs)} inputs instead of "
                    f"{len(part.inputs)}: the network ignores some.",
                    "Use another backend for this model, such as eager.",
                )
            if self.quantised:
                assert len(samples) == self.samples, (len(samples), self.samples)
                progress(f"{part.name}: quantising to int8 with {self.calibration_samples} samples")
                model = quantised(model, part.name, samples[:-_CHECKS])
            rewrite_group_norms(model)  # NNCF knows group norms, not their parts
            openvino.save_model(model, str(folder / "part.xml"), compress_to_fp16=False)
            del model
        checks = list(samples[-_CHECKS:]) if self.quantised else [tuple(part.inputs.values())]
        self._check(part, checks, folder, progress)

    def load(self, part: Part, folder: Path) -> PartCall:
        """See `Recipe`."""
        facts = _read_facts(folder)
        if facts["openvino"] != installed_version("openvino"):
            raise ModelError(
                f"A part was compiled for OpenVINO {facts['openvino']}; {installed_version('openvino') or 'none'} is "
                "installed.",
                "Build it again: zoetrope plans build --backend openvino.",
            )
        return _loaded(part, folder, facts["outputs"], self.threads)

    def update(self, part: Part, call: PartCall) -> None:
        """See `Recipe`."""
        raise AssertionError("its files contain the weights")

    def _check(self, part: Part, checks: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """Load what was written, compare it with PyTorch, and write part.json. Raises ModelError if it is wrong."""
        wanted = [_eager(part, sample) for sample in checks]
        outputs = [_described(tensor) for tensor in wanted[0]]
        call = _loaded(part, folder, outputs)
        errors = [_relative_error(call(*sample), right) for sample, right in zip(checks, wanted, strict=True)]
        error = sum(errors) / len(errors)
        if not error < _LARGEST_ERROR:
            raise ModelError(
                f"The part {part.name}, built by {self.name}, differs from PyTorch by {error:.2f} (relative).",
                "Use openvino-bf16 or eager for this model.",
            )
        progress(f"{part.name}: {self.name} differs from PyTorch by {100 * error:.1f} %")
        facts = {"openvino": installed_version("openvino"), "outputs": outputs, "relative_error": error}
        (folder / "part.json").write_text(json.dumps(facts))


def _described(tensor: torch.Tensor) -> dict[str, Any]:
    """Return the entry of part.json for an output of PyTorch's."""
    from .runtime import Output

    output = Output.like(tensor)
    return {"dtype": str(output.dtype).removeprefix("torch."), "channels_last": output.channels_last}


def _loaded(part: Part, folder: Path, described: Sequence[Mapping[str, Any]], threads: int = 0) -> PartCall:
    import torch

    from .convert import dynamic_axes
    from .runtime import OpenVINOCall, Output

    outputs = [
        Output(dtype=getattr(torch, entry["dtype"]), channels_last=bool(entry["channels_last"])) for entry in described
    ]
    in_rows = all(axis == 0 for axis in dynamic_axes(part).values())
    try:
        model = core().read_model(str(folder / "part.xml"))
        return OpenVINOCall(model, part, outputs, threads or torch.get_num_threads(), in_rows=in_rows)
    except RuntimeError as error:
        raise ModelError(
            f"OpenVINO cannot load the part {part.name}: {str(error).strip().splitlines()[-1]}",
            "Build it again: zoetrope plans build --backend openvino.",
        ) from error


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "part.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} has no complete OpenVINO part.", "Build it again: zoetrope plans build --backend openvino."
        ) from error
    return facts


def _eager(part: Part, sample: Tensors) -> Tensors:
    import torch

    with torch.no_grad():
        outputs: Tensors = part.module(*sample)
    return outputs


def _relative_error(outputs: Tensors, wanted: Tensors) -> float:
    """The largest of |a - b| / |b| of the outputs; NaN counts as such."""
    errors = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(outputs, wanted, strict=True)]
    return max(errors, key=lambda error: (error != error, error))
