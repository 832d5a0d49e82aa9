"""Owns how a transformer is built from a checkpoint: matching names, merging adapters, converting dtype and device.

Independent of families, the codec and the text encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from pipelines.core.errors import OutOfMemoryError
from pipelines.files.checkpoints import Checkpoint
from pipelines.files.memory import WORKING_BYTES, free_memory_bytes
from pipelines.files.precision import Precision, choose_precision
from pipelines.video.wan.actions import ActionEmbedder
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.transformer import CausalWanTransformer

from .checkpoint_keys import KeyReport, match
from .lora_merge import Adapter, merged

logger = logging.getLogger(__name__)


def choose_video_precision(device: torch.device, requested: str) -> Precision:
    """Like `choose_precision`, but auto takes bfloat16 on CUDA, in which the published causal video models run."""
    if requested == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(device=device, dtype=torch.bfloat16, reason="bfloat16: CUDA device")
    return choose_precision(device, requested)


def load_transformer(
    checkpoint: Checkpoint,
    config: WanConfig,
    precision: Precision,
    adapters: Sequence[Adapter] = (),
    *,
    action_embedder: ActionEmbedder | None = None,
) -> tuple[CausalWanTransformer, KeyReport]:
    """Load a checkpoint into a transformer for inference, with adapters merged; also return how names were matched.

    action_embedder: for a model that takes actions, already on the device; its weights are not in the checkpoint.
    Raises a ModelLayoutError that lists what does not fit, or OutOfMemoryError before anything is moved.
    """
    with torch.device("meta"):
        transformer = CausalWanTransformer(config, action_embedder=action_embedder)
    own = {f"action_embedder.{name}": tensor for name, tensor in _state(action_embedder).items()}
    state = {name: tensor for name, tensor in transformer.state_dict().items() if name not in own}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    report = match(checkpoint.shapes, expected, ignored=checkpoint.ignored)
    report.raise_unless_complete(str(checkpoint.source))
    for adapter in adapters:
        adapter.check(expected)
        logger.info("merging %s", adapter.summary)
    dtypes = {name: weight_dtype(name, precision.dtype) for name in expected}
    _check_memory(sum(tensor.numel() * dtypes[name].itemsize for name, tensor in state.items()), precision)
    weights = {
        target: merged(target, checkpoint.tensors[name], adapters).to(
            device=precision.device, dtype=dtypes[target], copy=True
        )
        for name, target in report.mapped.items()
    }
    transformer.load_state_dict(weights | own, assign=True)
    return transformer.eval().requires_grad_(False), report


def _state(embedder: ActionEmbedder | None) -> dict[str, torch.Tensor]:
    return {} if embedder is None else embedder.state_dict()


def weight_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of one weight in a model of `dtype`: at least float32 where diffusers keeps float32 too."""
    return torch.promote_types(dtype, torch.float32) if CausalWanTransformer.keeps_float32(name) else dtype


def _check_memory(weight_bytes: int, precision: Precision) -> None:
    free = free_memory_bytes(precision.device)
    if weight_bytes + WORKING_BYTES <= free:
        return
    kind = "GPU memory" if precision.device.type == "cuda" else "memory"
    smaller = " Use --dtype bfloat16." if precision.dtype.itemsize > 2 else " Use a 1.3B model."
    raise OutOfMemoryError(
        f"The transformer alone needs {weight_bytes / 2**30:.1f} GiB of {kind} in {precision.dtype_name}, and "
        f"{free / 2**30:.1f} GiB are free.",
        f"Close other programs, or use a device with more memory.{smaller}",
    )
