"""Owns the reading of weight files: safetensors, single or sharded, and pickled checkpoints of training tools.

Pickles are read with PyTorch's weights_only reader, which builds tensors and plain containers and runs nothing else, so
they do not need the user's permission; tensors stay on disk (memory-mapped) until they are used. Independent of models;
torch is imported when a file is read.
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
_DAMAGED = "The file is incomplete or damaged: download it again and compare its size with the published one."


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors of one file or set of shards, by their published names.

    container: the part of a pickled file that they come from ("generator_ema"); "" if they are at its top level.
    parts: all parts of the file. ignored: the entries that are not used, parts with their number of entries.
    """

    source: Path
    tensors: Mapping[str, torch.Tensor]
    container: str = ""
    parts: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path, containers: Sequence[str] = ()) -> Checkpoint:
    """Read a weight file, or the one set of weights in a folder (safetensors before pickles).

    containers: names of the part to take from a pickled file, in order of preference. Raises ModelLayoutError for a
    path without weights, a damaged file and a file without any of these parts, UnsafeWeightsError for a pickle that
    holds more than tensors and plain values.
    """
    file = find_checkpoint(path)
    if file.name.endswith(_INDEX_SUFFIX):
        return Checkpoint(source=file, tensors=_read_shards(file))
    if file.suffix == ".safetensors":
        return Checkpoint(source=file, tensors=_read_safetensors(file))
    return _select(file, _read_pickle(file), containers)


def find_checkpoint(path: Path) -> Path:
    """Return the weight file at a path: the file itself, or the only candidate in a folder. Raises ModelLayoutError."""
    if path.is_file():
        if path.suffix == ".safetensors" or path.name.endswith(_INDEX_SUFFIX) or is_pickle(path):
            return path
        raise ModelLayoutError(f"{path} is not a weight file.", "Give a .safetensors, .pt or .pth file.")
    if not path.is_dir():
        raise ModelLayoutError(f"{path} does not exist.", "Give the path of a checkpoint or of its folder.")
    files = sorted(file for file in path.iterdir() if file.is_file())
    indices = [file for file in files if file.name.endswith(_INDEX_SUFFIX)]
    sharded = {name for index in indices for name in _weight_map(index).values()}
    single = [file for file in files if file.suffix == ".safetensors" and file.name not in sharded]
    for candidates in (indices + single, [file for file in files if is_pickle(file)]):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ModelLayoutError(
                f"{path} contains several weight files: {listed(file.name for file in candidates)}.",
                f"Name the one to load, for example {candidates[0]}.",
            )
    raise ModelLayoutError(f"{path} contains no weight file.", "Give a folder with a .safetensors, .pt or .pth file.")


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the path itself if it is a weight file, or the weight files directly inside it, sorted by name."""
    files = (path,) if path.is_file() else tuple(sorted(path.glob("*")))
    return tuple(file for file in files if file.is_file() and (file.suffix == ".safetensors" or is_pickle(file)))


def names_in(file: Path) -> tuple[str, ...]:
    """Return the tensor names from a safetensors header or a shard index; none if the safetensors file is damaged."""
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
        raise ModelLayoutError(f"{index} names weights that no shard contains: {listed(missing)}.", _DAMAGED)
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
            f"{file} holds more than tensors and plain values{_refused(error)}: reading it could run arbitrary code.",
            "Use a .safetensors copy, or re-save only its tensors on a machine where you trust the file.",
        ) from None
    except Exception as error:  # noqa: BLE001  corrupt data can make an unpickler raise anything
        raise _damaged(file, error) from None


def _load(file: Path, *, mmap: bool) -> Any:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except RuntimeError as error:
        # Files from before PyTorch 1.6 are not zip archives: they can be read but not memory-mapped.
        if mmap and "mmap can only be used with files saved with" in str(error):
            return _load(file, mmap=False)
        raise


def _select(file: Path, content: Any, containers: Sequence[str]) -> Checkpoint:
    """Return the part of a pickled file that holds the weights, or its top level if that maps names to tensors."""
    import torch

    if not isinstance(content, Mapping):
        raise ModelLayoutError(
            f"{file} contains a {type(content).__name__}, not named weights.", "Give a model checkpoint."
        )
    direct = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    parts = {str(name): value for name, value in content.items() if isinstance(value, Mapping) and value}
    chosen = next((name for name in containers if name in parts), None)
    if chosen is None and direct:
        rest = tuple(str(name) for name in content if str(name) not in direct)
        return Checkpoint(source=file, tensors=direct, parts=frozenset(parts), ignored=rest)
    if chosen is None:
        raise ModelLayoutError(
            f"{file} contains no generator weights, only {listed(parts) or 'nothing'}.",
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
    return ModelLayoutError(f"{file} cannot be read: {_first_line(error)}.", _DAMAGED)


def _refused(error: Exception) -> str:
    found = _GLOBAL.search(str(error))
    return f" ({found[1]})" if found else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__).rstrip(".")


def listed(names: Iterable[str]) -> str:
    """Join the first few names, followed by how many more there are."""
    all_names = tuple(names)
    rest = len(all_names) - _MAX_LISTED
    return ", ".join(all_names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
