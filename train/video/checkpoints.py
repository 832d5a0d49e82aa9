"""Owns the checkpoints passed between runs: float16 in files below 15 MiB. Independent of network shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.session import TrainingSession

_PART_BYTES = 15 << 20


def save_parts(session: TrainingSession, name: str, **modules: nn.Module | Mapping[str, Tensor]) -> None:
    """Write out/NAME-0.safetensors, NAME-1, ... with keys prefixed by the argument's name; shared parameters once.

    Rank 0 only.
    """
    if session.crew.rank:
        return
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        state = _state(module) if isinstance(module, nn.Module) else module
        for key, value in state.items():
            half = value.detach().half() if value.is_floating_point() else value.detach()
            tensors[f"{prefix}.{key}"] = half.contiguous().cpu()
    parts = list(_parts(tensors))
    for number, part in enumerate(parts):
        save_file(part, session.out / f"{name}-{number}.safetensors")
    for stale in _files(session.out, name)[len(parts) :]:
        stale.unlink()


def restore_parts(session: TrainingSession, name: str, **modules: nn.Module) -> bool:
    """Load modules from the parts of this run, else of resume; False if neither has them.

    Raises RuntimeError, as torch does, if a module's tensors and the stored ones differ in names or shapes.
    """
    for folder in (session.out, session.resume):
        tensors = read_parts(folder, name)
        if not tensors:
            continue
        for prefix, module in modules.items():
            start, own = f"{prefix}.", module.state_dict()
            state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            once = _state(module).keys()
            shared = {k: v for k, v in own.items() if k not in once}
            module.load_state_dict({**shared, **{k: v.to(own[k].dtype) if k in own else v for k, v in state.items()}})
        return True
    return False


def require_parts(session: TrainingSession, name: str, **modules: nn.Module) -> None:
    """`restore_parts`; raises FileNotFoundError with the stage that writes the files."""
    if not restore_parts(session, name, **modules):
        raise FileNotFoundError(f"no {name}-*.safetensors in {session.out} or {session.resume}; run stage {name!r}")


def read_parts(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of NAME in a folder, with their prefixes; empty if there are none."""
    return {key: value for file in _files(folder, name) for key, value in load_file(file).items()}


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under one name each, even if a network shares them under several."""
    state = dict(module.named_parameters())
    names = module.state_dict().keys()
    buffers: dict[str, Tensor] = {name: buffer for name, buffer in module.named_buffers() if name in names}
    return {**state, **buffers}


def _files(folder: Path, name: str) -> list[Path]:
    files = [file for file in folder.glob(f"{name}-*.safetensors") if file.stem.removeprefix(f"{name}-").isdigit()]
    return sorted(files, key=lambda file: int(file.stem.rpartition("-")[2]))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    filled = 0
    for key, value in tensors.items():
        if part and filled + value.nbytes > _PART_BYTES:
            yield part
            part, filled = {}, 0
        part[key] = value
        filled += value.nbytes
    yield part
