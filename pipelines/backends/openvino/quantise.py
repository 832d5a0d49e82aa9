"""Owns post-training quantisation to int8 by NNCF: which operations, and with which statistics.

Independent of files and of how the model is run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from pipelines.core.parts import Tensors

from .library import core, import_nncf
from .runtime import as_array, has_vnni, precision_config


def quantised(model: Any, part: str, samples: Sequence[Tensors]) -> Any:
    """Return the openvino.Model with int8 weights and activations, calibrated on samples, each the part's inputs.

    Weights are symmetric, activations asymmetric, but for a pass: OpenVINO multiplies the asymmetric inputs of a
    transformer's layers in bfloat16. Denoisers are quantised as transformers: fewer inputs of attention are, and
    SmoothQuant shifts outliers into the weights. In 16 bits stay the convolution at the latents, and layers of a
    denoiser that see one vector a picture (of the time embedding): they take a fiftieth of the time. A codec's
    activations are quantised over all of their range: NNCF's default, the means of the samples' extremes, clips those
    of guided and other extreme latents (the worst of 24 pictures of mini-image: 24 dB instead of 43). Denoisers are
    better with the default, by 1 to 4 dB. Without VNNI instructions products of int8 saturate, so half of the range is
    used.
    """
    nncf = import_nncf()
    arrays = [[as_array(tensor) for tensor in sample] for sample in samples]
    transformer = part in ("denoise", "pass")
    advanced, ranges = nncf.quantization.advanced_parameters, nncf.quantization.range_estimator
    estimators, presets = ranges.RangeEstimatorParametersSet, nncf.QuantizationPreset
    with _safe_statistics(), redirect_stdout(io.StringIO()):  # NNCF draws progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(arrays),
            preset=presets.PERFORMANCE if part == "pass" else presets.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(arrays),
            ignored_scope=nncf.IgnoredScope(names=_kept(model, part)),
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                activations_range_estimator_params=estimators.MEAN_MINMAX if transformer else estimators.MINMAX,
                overflow_fix=advanced.OverflowFix.DISABLE if has_vnni() else advanced.OverflowFix.ENABLE,
            ),
        )


def _kept(model: Any, part: str) -> list[str]:
    """Return the names of the operations that stay in 16 bits: the convolution at latents, and products with vectors.

    An encoder's last convolution is at latents, the first one of other parts.
    """
    operations = model.get_ordered_ops()
    convolutions = [op.get_friendly_name() for op in operations if op.get_type_name() == "Convolution"]
    products = [op for op in operations if op.get_type_name() == "MatMul"]
    vectors = [op.get_friendly_name() for op in products if len(op.get_input_partial_shape(0)) == 2]
    return [*(convolutions[-1:] if part == "encode" else convolutions[:1]), *vectors]


@contextmanager
def _safe_statistics() -> Iterator[None]:
    """Let NNCF collect its statistics in a precision that works.

    It asks for float32, in which compiling networks with attention ends the process (OpenVINO 2026.4, a fault in fused
    subgraphs): see `precision_config`.
    """
    from nncf.openvino import engine as engines

    original = engines.OVNativeEngine.__init__

    def init(self: Any, model: Any, use_fp32_precision: bool = True) -> None:
        compiled = core().compile_model(model, "CPU", precision_config())
        self.engine = engines.OVCompiledModelEngine(compiled, stateful=False)

    engines.OVNativeEngine.__init__ = init
    try:
        yield
    finally:
        engines.OVNativeEngine.__init__ = original
