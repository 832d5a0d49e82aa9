"""What frames depend on besides a take's records: the model, its backend and the machine. Written into every take.

Makes the description, compares two, and gives the options that load the same engine. Independent of takes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from pipelines.core.errors import InputError
from pipelines.core.types import StreamInfo
from pipelines.files.loader_options import LoaderOptions
from pipelines.files.lora_files import LoraFile
from pipelines.kinds import ModelKind, kind_of

_PROBE_BYTES = 2**20
_PACKAGES = ("zoetrope", "numpy", "torch", "diffusers", "transformers", "safetensors", "opencv-python-headless")
_SIZES = ("width", "height", "frames_per_slot", "max_slots")
_LOADER_KEYWORDS = (
    *_SIZES,
    "autoencoder",
    "safety",
    "video",
    "stages",
    "step_cache",
    "cache_profile",
    "slicing",
)
Machine = dict[str, object]


def describe_machine(model: str, options: LoaderOptions, info: StreamInfo, threads: int) -> Machine:
    """model, options: as given to load_engine. info: of one of its streams. threads: CPU threads. Reads a few MiB."""
    kind = kind_of(model)
    return {
        "model": model,
        "weights": _weights(kind.weight_files(model, options)),
        "loader": _loader_keywords(options),
        "loras": [[lora.source, lora.weight] for lora in options.loras],
        "dtype": info.dtype,
        "device": info.device,
        "backend": info.backend,
        "size": f"{info.width}x{info.height}",
        "threads": threads,
        "processor": _processor(kind, info),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def recorded_engine(machine: Mapping[str, object]) -> tuple[str, LoaderOptions]:
    """The model and the options that load the same engine, except device, dtype and backend; never allow_pickle, which
    a take cannot grant. Raises InputError for a description that cannot be read, and for an unknown option."""
    try:
        model, loader = str(machine["model"]), cast(Mapping[str, object], machine["loader"])
        keywords: dict[str, Any] = {name: loader[name] for name in _LOADER_KEYWORDS if name in loader}
        loras = cast(list[tuple[str, float]], machine["loras"])
        keywords["loras"] = tuple(LoraFile(source=source, weight=weight) for source, weight in loras)
        return model, LoaderOptions().changed(keywords)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The take does not say which model it needs ({error!r}).", "Its first lines are lost."
        ) from error


def differences(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The differences as phrases: 'torch 2.13 instead of 2.12'."""
    before, after = _flat(then), _flat(now)
    return [
        f"{name} {after.get(name, 'unknown')} instead of {before.get(name, 'unknown')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _flat(machine: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in machine.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, "" if name == "versions" else f"{name} "))
        else:
            flat[prefix + name] = str(value)
    return flat


def _loader_keywords(options: LoaderOptions) -> dict[str, object]:
    """The options that frames depend on, unless another line of the description has them."""
    keywords: dict[str, object] = {
        "width": options.width,
        "height": options.height,
        "frames_per_slot": options.frames_per_slot,
        "autoencoder": options.autoencoder,
        "safety": options.safety,
    }
    if options.max_slots != LoaderOptions().max_slots:
        keywords["max_slots"] = options.max_slots
    if video := options.video.chosen():
        keywords["video"] = video
    if options.stages:
        keywords["stages"] = list(options.stages)
    if options.step_cache:
        keywords["step_cache"] = options.step_cache
    if options.cache_profile:
        keywords["cache_profile"] = options.cache_profile
    if options.slicing != "off":
        keywords["slicing"] = options.slicing
    return keywords


def _weights(files: Sequence[tuple[str, Path]]) -> str:
    """Names, sizes and the first and last MiB of every weight file, each with its part, in one digest."""
    if not files:
        return "none"
    digest = hashlib.sha256()
    for part, file in files:
        _probe(file, part, digest)
    return digest.hexdigest()[:32]


def _probe(file: Path, name: str, digest: hashlib._Hash) -> None:
    size = file.stat().st_size
    digest.update(f"{name}/{file.name} {size}\n".encode())
    with file.open("rb") as opened:
        digest.update(opened.read(_PROBE_BYTES))
        opened.seek(max(0, size - _PROBE_BYTES))
        digest.update(opened.read(_PROBE_BYTES))


def _processor(kind: ModelKind, info: StreamInfo) -> str:
    """The device's name; for a CPU, the instruction set of its kernels, which determines the order of sums."""
    if not kind.uses_torch:
        return platform.machine()
    import torch

    if info.device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(info.device))
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
