"""What frames depend on besides a take's records: the model, its backend and the machine. Written into every take.

Makes the description, compares two, and derives the keywords that load the same engine. Independent of takes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from pipelines.core.errors import InputError
from pipelines.core.types import StreamInfo
from pipelines.files.lora_files import LoraFile

_PROBE_BYTES = 2**20
_PACKAGES = ("zoetrope", "numpy", "torch", "diffusers", "transformers", "safetensors", "opencv-python-headless")
_LOADER_KEYWORDS = ("width", "height", "frames_per_slot", "max_slots", "autoencoder", "safety", "video")
Machine = dict[str, object]


def describe_machine(model: str, engine: Mapping[str, object], info: StreamInfo, threads: int) -> Machine:
    """model, engine: as given to load_engine. info: of one of its streams. threads: CPU threads. Reads a few MiB."""
    return {
        "model": model,
        "weights": "none" if model == "identity" else _weights(model, engine),
        "loader": {name: engine[name] for name in _LOADER_KEYWORDS if name in engine},
        "loras": [[lora.source, lora.weight] for lora in _loras(engine)],
        "dtype": info.dtype,
        "device": info.device,
        "backend": info.backend,
        "size": f"{info.width}x{info.height}",
        "threads": threads,
        "processor": _processor(info),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def loader_keywords(machine: Mapping[str, object]) -> dict[str, object]:
    """The keywords of pipelines.load.load_engine for the same engine; never allow_pickle, which a take cannot grant.
    Raises InputError for a description that cannot be read."""
    try:
        loader = cast(Mapping[str, object], machine["loader"])
        keywords: dict[str, object] = {name: loader[name] for name in _LOADER_KEYWORDS if name in loader}
        loras = cast(list[tuple[str, float]], machine["loras"])
        keywords["loras"] = tuple(LoraFile(source=source, weight=weight) for source, weight in loras)
        return {"model": str(machine["model"]), **keywords}
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


def _weights(model: str, engine: Mapping[str, object]) -> str:
    """A digest of the name, size, and first and last MiB of every weight file."""
    from pipelines.files import hub
    from pipelines.files.layout import find_weights, read_layout
    from pipelines.video.loading.source import is_video_model, video_weight_files

    pickle = bool(engine.get("allow_pickle", False))
    digest = hashlib.sha256()
    if is_video_model(model):
        for name, file in video_weight_files(model, str(_video(engine).get("base", ""))):
            _probe(file, name, digest)
        return digest.hexdigest()[:32]
    for part in read_layout(hub.resolve(model, allow_pickle=pickle).folder).weighted:
        for file in find_weights(part, allow_pickle=pickle).files:
            _probe(file, part.name, digest)
    for lora in _loras(engine):
        _probe(hub.resolve_lora(lora), "lora", digest)
    return digest.hexdigest()[:32]


def _probe(file: Path, name: str, digest: hashlib._Hash) -> None:
    size = file.stat().st_size
    digest.update(f"{name}/{file.name} {size}\n".encode())
    with file.open("rb") as opened:
        digest.update(opened.read(_PROBE_BYTES))
        opened.seek(max(0, size - _PROBE_BYTES))
        digest.update(opened.read(_PROBE_BYTES))


def _video(engine: Mapping[str, object]) -> Mapping[str, object]:
    video = engine.get("video") or {}
    assert isinstance(video, Mapping)
    return video


def _loras(engine: Mapping[str, object]) -> tuple[LoraFile, ...]:
    loras = engine.get("loras", ())
    assert isinstance(loras, tuple | list)
    return tuple(loras)


def _processor(info: StreamInfo) -> str:
    """The device's name; for a CPU, the instruction set of its kernels, which determines the order of sums."""
    if info.model == "identity":
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
