"""Describes the machine for a card: device, driver, versions of the libraries that are installed. Measures nothing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from .card import Machine
from .meters import NvmlMissingError, nvml_handle

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "openvino",
    "nncf",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
)
_GIB = 2**30


def describe_machine(device: torch.device) -> Machine:
    """Return the description of this machine with that device. Imports torch."""
    from pipelines.files.precision import cpu_flags

    cpu, driver = cpu_name(), ""
    versions = {"python": platform.python_version()}
    versions |= {package: found for package in _PACKAGES if (found := _version(package))}
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        name, memory_gib, driver = properties.name, properties.total_memory / _GIB, _driver(device)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    else:
        name, memory_gib = cpu, _memory_gib()
    return Machine(
        device=name,
        memory_gib=round(memory_gib, 1),
        cpu=cpu,
        cpu_features=cpu_flags(),
        cores=_cores(),
        system=f"{platform.system()} {platform.machine()}",
        driver=driver,
        versions=versions,
    )


def cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as Linux gives it, elsewhere Python's; never empty."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory_gib() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / _GIB


def _driver(device: torch.device) -> str:
    try:
        nvml, _ = nvml_handle(device)
    except NvmlMissingError as error:
        return f"unknown: {error}"
    return str(nvml.nvmlSystemGetDriverVersion())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
