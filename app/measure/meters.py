"""What a device takes: its energy counter and a process's peak memory. Independent of what runs on the device.

Energy: on NVIDIA cards NVML's counter of the whole board, through nvidia-ml-py; on CPUs Intel's and AMD's RAPL counters
of the processor packages, which Linux shows under /sys/class/powercap. Both count everything that runs there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
_MIB = 2**20


class EnergyMeter(Protocol):
    """Reads how much energy a device has taken."""

    @property
    def what(self) -> str:
        """What it counts, or why it counts nothing."""
        ...

    def start(self) -> None:
        """Begin a stretch."""
        ...

    def joules(self) -> float | None:
        """Return the energy since `start`; None if it counts nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """The meter of a device without a counter that can be read. what: the reason."""

    what: str

    def start(self) -> None:
        """Do nothing."""

    def joules(self) -> float | None:
        """Return None."""
        return None


class Counters:
    """A meter of one or more counters that run on for ever, each starting again at 0 after its limit."""

    def __init__(self, what: str, counters: Sequence[Callable[[], float]], limits: Sequence[float | None]) -> None:
        """counters: each returns joules. limits: the largest value of each; None: it does not wrap."""
        assert len(counters) == len(limits) > 0
        self._what, self._counters, self._limits = what, counters, limits
        self._before = [counter() for counter in counters]

    @property
    def what(self) -> str:
        """What it counts."""
        return self._what

    def start(self) -> None:
        """Begin a stretch."""
        self._before = [counter() for counter in self._counters]

    def joules(self) -> float | None:
        """Return the joules since `start`. A counter may have wrapped at most once."""
        now = [counter() for counter in self._counters]
        return sum(
            after - before if limit is None or after >= before else after - before + limit
            for before, after, limit in zip(self._before, now, self._limits, strict=True)
        )


def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter:
    """Return the meter of a CUDA device or of the CPU. powercap: where Linux shows RAPL."""
    return _nvml_meter(device) if device.type == "cuda" else _rapl_meter(powercap)


def _nvml_meter(device: torch.device) -> EnergyMeter:
    try:
        nvml, handle = nvml_handle(device)
    except NvmlMissingError as error:
        return Unmeasured(str(error))

    def joules() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # in millijoules

    try:
        return Counters("the whole card, by NVML's energy counter", [joules], [None])
    except nvml.NVMLError as error:
        return Unmeasured(f"this card has no energy counter that NVML can read ({error})")


class NvmlMissingError(Exception):
    """NVML cannot be used; the text says why, and how to get it."""


def nvml_handle(device: torch.device) -> tuple[Any, Any]:
    """Return the module pynvml, initialised, and its handle of a CUDA device. Raises NvmlMissingError."""
    try:
        import pynvml
    except ImportError:
        raise NvmlMissingError(
            "NVML is read with nvidia-ml-py, which is not installed (pip install nvidia-ml-py)"
        ) from None
    import torch

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)  # unlike an index, true with CUDA_VISIBLE_DEVICES
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        raise NvmlMissingError(f"NVML does not answer for this card ({error})") from None


def _rapl_meter(powercap: Path) -> EnergyMeter:
    packages = sorted(folder for folder in powercap.glob("intel-rapl:*") if folder.name.count(":") == 1)
    if not packages:
        return Unmeasured(f"this machine shows no RAPL counters (no {powercap}/intel-rapl:*)")
    try:
        limits = [_microjoules(folder / "max_energy_range_uj") for folder in packages]
        counters = [lambda file=folder / "energy_uj": _microjoules(file) for folder in packages]
        return Counters("the processor packages, by RAPL", counters, limits)
    except PermissionError:
        return Unmeasured(
            f"only root may read {packages[0]}/energy_uj (sudo chmod a+r {powercap}/intel-rapl:*/energy_uj)"
        )
    except (OSError, ValueError) as error:
        return Unmeasured(f"RAPL cannot be read ({error})")


def _microjoules(file: Path) -> float:
    return int(file.read_text(encoding="ascii")) / 1e6


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The peak memory of this process. what: what is counted. mib: reads it, MiB."""

    what: str
    mib: Callable[[], float]


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the peak of PyTorch's allocator on a CUDA device, or of the process's resident memory on a CPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return PeakMemory(
            "peak of PyTorch's allocator on the card", lambda: torch.cuda.max_memory_allocated(device) / _MIB
        )
    return PeakMemory("peak resident memory of the process", resident_peak_mib)


def resident_peak_mib(status: Path = Path("/proc/self/status")) -> float:
    """Return the peak resident memory of this process, MiB.

    On Linux VmHWM: unlike getrusage's value it does not begin with the peak of the process that started this one.
    """
    if sys.platform == "linux":
        (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10  # in KiB
    elif sys.platform == "win32":  # noqa: RET505  # a checker that knows the platform skips the other branches
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / _MIB
    else:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB  # macOS counts in bytes
