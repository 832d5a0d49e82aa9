"""Owns what identifies a part for a store of plans: its weights, its code and settings, its inputs.

Independent of recipes and of where plans are kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

import torch
from torch import nn

from pipelines.core.parts import Part
from trt.key import PlanKey

from .recipe import Recipe

NONE_OPEN: Mapping[str, int] = MappingProxyType({})
_OURS = ("pipelines", "cache")
_SIMPLE = (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size, Enum)


def plan_key(recipe: Recipe, part: Part, model: str, lora: str = "") -> PlanKey:
    """Return the key of what `recipe` makes of a part. model: its name. lora: the LoRA set and how it is applied.

    Reads all weights if the recipe's files contain them.
    """
    return PlanKey.with_details(
        recipe=recipe.name,
        part=part.name,
        model=model,
        inputs=describe_inputs(part, recipe.open_axes(part)),
        weights=weights_digest(part.module) if recipe.bakes_weights else "",
        program=program_digest(part.module),
        lora=lora,
        details=recipe.key(part),
    )


def describe_inputs(part: Part, open_axes: Mapping[str, int] = NONE_OPEN) -> str:
    """Return names, dtypes and shapes: "latents float32 [2, 4, 64, 64]; timestep int64 [2]".

    open_axes: of which the length does not matter: "latents float32 [N, 4, 64, 64]; timestep int64 [N]".
    """

    def shape(name: str, tensor: torch.Tensor) -> str:
        sizes = ["N" if axis == open_axes.get(name) else str(size) for axis, size in enumerate(tensor.shape)]
        return f"[{', '.join(sizes)}]"

    return "; ".join(
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {shape(name, tensor)}"
        for name, tensor in part.inputs.items()
    )


def weights_digest(module: nn.Module) -> str:
    """Return the sha256 of names, dtypes, shapes and values of all parameters and buffers, wherever they are."""
    whole = hashlib.sha256()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda entry: entry[0]):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def program_digest(module: nn.Module) -> str:
    """Return the sha256 of what computes, apart from weights: classes, settings, our source and others' versions.

    Our source: the files of all classes and functions of the module tree and, in turn, of what those files import.
    """
    lines: list[str] = []
    roots: set[str] = set()
    for name, part in module.named_modules():
        lines.append(f"{name}: {type(part).__module__}.{type(part).__qualname__}")
        roots.add(type(part).__module__)
        for setting, value in sorted(vars(part).items()):
            if setting.startswith("__") or setting in _TORCHS_OWN:
                continue
            lines.append(f"{name}.{setting}={_text(value)}")
            roots.update(_modules_of(value))
    files = sorted(_source_files(roots))
    lines += [f"{file.stem} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    lines += [f"{package} {_version(package)}" for package in sorted({root.partition(".")[0] for root in roots})]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}


def _text(value: Any) -> str:
    """Describe a setting without addresses and paths: the same in every process."""
    if isinstance(value, _SIMPLE):
        return repr(value)
    if isinstance(value, Mapping):
        named = sorted((str(key), _text(entry)) for key, entry in value.items() if not str(key).startswith("_"))
        return f"{{{', '.join(f'{key}: {entry}' for key, entry in named)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, (nn.Module, torch.Tensor)) or type(value).__module__.partition(".")[0] not in _OURS:
        return kind
    return f"{kind}{_text(_attributes(value))}"


def _attributes(value: object) -> dict[str, object]:
    """Return the attributes of an object of ours, of slots too."""
    slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
    named = {name: getattr(value, name) for name in slots}
    return named | dict(getattr(value, "__dict__", {}))


def _modules_of(value: object) -> Iterator[str]:
    owner = getattr(value, "__module__", None) if isinstance(value, FunctionType) else type(value).__module__
    if isinstance(owner, str):
        yield owner


def _source_files(roots: Iterable[str]) -> set[Path]:
    """Return our files of these modules and of what they import."""
    waiting, seen, files = list(roots), set[str](), set[Path]()
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] not in _OURS or name not in sys.modules:
            continue
        seen.add(name)
        module = sys.modules[name]
        if module.__file__:
            files.add(Path(module.__file__))
        for value in vars(module).values():
            waiting.append(value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", "")))
    return files


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""
