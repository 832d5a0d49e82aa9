"""Owns the choice of device and dtype, by what the processor supports. Independent of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipelines.core.errors import ModelError

_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The device and dtype that a model runs on, and why: `reason` is shown to the user."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        """'float32', 'bfloat16', 'float16' or 'float64'."""
        return str(self.dtype).removeprefix("torch.")


def choose_device(requested: str) -> torch.device:
    """Resolve a device name; 'auto': the first CUDA device if any, else the CPU. Raises ModelError if unavailable."""
    if requested == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ModelError(f"There is no kind of device named {requested!r}.", "Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ModelError(f"Zoetrope does not run on {device.type} devices.", "Use auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise ModelError(
            f"The device {requested!r} was requested, but this machine has {count} CUDA devices that PyTorch can use.",
            "Use --device cpu, or install a driver and PyTorch with CUDA; `zoetrope doctor` shows what is available.",
        )
    return torch.device("cuda", index)


def choose_precision(device: torch.device, requested: str) -> Precision:
    """Resolve 'auto' or the name of a dtype.

    auto: bfloat16 on CPUs with hardware support for it (AVX512_BF16 or AMX_BF16), float32 on other CPUs, float16 on
    CUDA. Raises ModelError for an unknown name and for a dtype that the device does not support.
    """
    if requested == "auto":
        return _automatic(device)
    dtype = _DTYPES.get(requested)
    if dtype is None:
        raise ModelError(f"There is no dtype {requested!r}.", f"Use auto or one of: {', '.join(_DTYPES)}.")
    if device.type == "cpu" and dtype is torch.float16:
        raise ModelError(
            "float16 was requested, but it is not supported on CPUs.", "Use --dtype auto, bfloat16 or float32."
        )
    if dtype is torch.bfloat16 and not _has_bfloat16(device):
        raise ModelError(
            f"bfloat16 was requested, but this {device.type} device does not support it.",
            "Use --dtype auto or float32.",
        )
    return Precision(device=device, dtype=dtype, reason=f"{requested} as requested")


def cpu_flags() -> tuple[str, ...]:
    """Return the relevant processor features, as reported by PyTorch."""
    names = ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16", "bf16")
    return tuple(name for name in names if _capabilities().get(name))


def _automatic(device: torch.device) -> Precision:
    if device.type == "cuda":
        return Precision(device=device, dtype=torch.float16, reason="float16: CUDA device")
    if _has_bfloat16(device):
        flags = ", ".join(name for name in cpu_flags() if "bf16" in name)
        return Precision(device=device, dtype=torch.bfloat16, reason=f"bfloat16: the CPU has {flags}")
    return Precision(device=device, dtype=torch.float32, reason="float32: the CPU does not support bfloat16")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = _capabilities()
    return any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _capabilities() -> Mapping[str, object]:
    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    return capabilities
