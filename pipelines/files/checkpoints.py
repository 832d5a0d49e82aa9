"""Owns the reading of weight files: safetensors, whole or in shards, and pickled checkpoints of training tools.

Pickles are read with PyTorch's weights_only reader, which builds tensors and plain containers and runs nothing else,
so they need no leave of the user; tensors stay on the disk (memory-mapped) until they are used. Independent of models;
the tensor library is imported when a file is read.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import ModelLayoutError, UnsafeWeightsError

from .layout import is_pickle

if TYPE_CHECKING:
    import torch

_MAX_LISTED = 6
_INDEX_SUFFIX = ".safetensors.index.json"
_GLOBAL = re.compile(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)")
_DAMAGED = "It is not whole or is damaged: download it again and compare its size with the published one."


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors of one file or set of shards, by their published names.

    container: which part of a pickled file they are ("generator_ema"); "" where the file holds nothing else.
    parts: all the parts that the file has. ignored: those that are not used, with how much they hold.
    """

    source: Path
    tensors: Mapping[str, torch.Tensor]
    container: str = ""
    parts: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path, containers: Sequence[str] = ()) -> Checkpoint:
    """Read a weight file, or the one set of weights in a folder (safetensors before pickles).

    containers: names of the part to take from a pickled file, best first. Raises ModelLayoutError for a path without
    weights, a damaged file and a file without any of these parts, UnsafeWeightsError for a pickle that holds more
    than tensors and plain values.
    """
    file = find_checkpoint(path)
    if file.name.endswith(_INDEX_SUFFIX):
        return Checkpoint(source=file, tensors=_read_shards(file))
    if file.suffix == ".safetensors":
        return Checkpoint(source=file, tensors=_read_safetensors(file))
    return _select(file, _read_pickle(file), containers)


def find_checkpoint(path: Path) -> Path:
    """The weight file that a path means: itself, or the only candidate in a folder. Raises ModelLayoutError."""
    if path.is_file():
        if path.suffix == ".safetensors" or path.name.endswith(_INDEX_SUFFIX) or is_pickle(path):
            return path
        raise ModelLayoutError(f"{path} is no weight file.", "Give a .safetensors, .pt or .pth file.")
    if not path.is_dir():
        raise ModelLayoutError(f"{path} does not exist.", "Give the path of a checkpoint or of its folder.")
    files = sorted(file for file in path.iterdir() if file.is_file())
    indices = [file for file in files if file.name.endswith(_INDEX_SUFFIX)]
    sharded = {name for index in indices for name in _weight_map(index).values()}
    whole = [file for file in files if file.suffix == ".safetensors" and file.name not in sharded]
    for candidates in (indices + whole, [file for file in files if is_pickle(file)]):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ModelLayoutError(
                f"{path} holds several weight files: {listed(file.name for file in candidates)}.",
                f"Name the one to load, for example {candidates[0]}.",
            )
    raise ModelLayoutError(f"{path} holds no weight file.", "Give a folder with a .safetensors, .pt or .pth file.")


def weight_files(path: Path) -> tuple[Path, ...]:
    """The weight files, by their names, that a path is or that lie directly in it."""
    files = (path,) if path.is_file() else tuple(sorted(path.glob("*")))
    return tuple(file for file in files if file.is_file() and (file.suffix == ".safetensors" or is_pickle(file)))


def names_in(file: Path) -> tuple[str, ...]:
    """The names in a safetensors file, or in the index of its shards, from its header; none where it is damaged."""
    if file.name.endswith(_INDEX_SUFFIX):
        return tuple(_weight_map(file))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return tuple(opened.keys())
    except (SafetensorError, OSError):
        return ()


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from None
    return tensors


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    weight_map = _weight_map(index)
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / name
        if not file.is_file():
            raise ModelLayoutError(f"{file} is missing, which {index.name} names.", "Download the model again.")
        tensors.update(_read_safetensors(file))
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ModelLayoutError(f"{index} names weights that no shard holds: {listed(missing)}.", _DAMAGED)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(index, error) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLayoutError(f"{index} names no shards.", _DAMAGED)
    return {str(name): str(file) for name, file in weight_map.items()}


def _read_pickle(file: Path) -> Any:
    try:
        return _load(file, mmap=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _damaged(file, error) from None
        raise UnsafeWeightsError(
            f"{file} holds more than tensors and plain values{_refused(error)}: reading that could run any code.",
            "Use a .safetensors copy, or save only the tensors of this file again on a machine where you trust it.",
        ) from None
    except Exception as error:  # noqa: BLE001  broken bytes make an unpickler raise anything
        raise _damaged(file, error) from None


def _load(file: Path, *, mmap: bool) -> Any:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except RuntimeError as error:
        # Files of PyTorch before 1.6 are no zip archives: they cannot be mapped, only read.
        if mmap and "mmap can only be used with files saved with" in str(error):
            return _load(file, mmap=False)
        raise


def _select(file: Path, content: Any, containers: Sequence[str]) -> Checkpoint:
    """The part of a pickled file that holds the weights; the file itself when it maps names to tensors."""
    import torch

    if not isinstance(content, Mapping):
        raise ModelLayoutError(
            f"{file} holds a {type(content).__name__}, not named weights.", "Give a checkpoint of a model."
        )
    direct = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    parts = {str(name): value for name, value in content.items() if isinstance(value, Mapping) and value}
    chosen = next((name for name in containers if name in parts), None)
    if chosen is None and direct:
        rest = tuple(str(name) for name in content if str(name) not in direct)
        return Checkpoint(source=file, tensors=direct, parts=frozenset(parts), ignored=rest)
    if chosen is None:
        raise ModelLayoutError(
            f"{file} holds no weights of a generator, but {listed(parts) or 'nothing'}.",
            f"Give a checkpoint with one of: {', '.join(containers)}." if containers else "Give another file.",
        )
    tensors = {str(name): value for name, value in parts[chosen].items() if isinstance(value, torch.Tensor)}
    inner = tuple(f"{chosen}.{name}" for name in parts[chosen] if str(name) not in tensors)
    others = tuple(f"{name} ({len(part)} entries)" for name, part in parts.items() if name != chosen)
    scalars = tuple(str(name) for name in content if str(name) not in parts)
    return Checkpoint(
        source=file, tensors=tensors, container=chosen, parts=frozenset(parts), ignored=others + inner + scalars
    )


def _damaged(file: Path, error: Exception) -> ModelLayoutError:
    return ModelLayoutError(f"{file} cannot be read: {_line(error)}.", _DAMAGED)


def _refused(error: Exception) -> str:
    found = _GLOBAL.search(str(error))
    return f" ({found[1]})" if found else ""


def _line(error: Exception) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__).rstrip(".")


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more."""
    known = tuple(names)
    rest = len(known) - _MAX_LISTED
    return ", ".join(known[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
