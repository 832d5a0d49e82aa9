"""Owns LoRA adapters of video transformers, in PEFT, kohya or diffusers naming, merged while weights are loaded.

W = W0 + weight * alpha / r * B A (Hu et al. 2021, section 4.1), summed in float32 before W is converted to its dtype.
Independent of devices and running models: pipelines/image/loading/lora.py changes the scale of image models while they
run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.core.errors import ModelLayoutError
from pipelines.files.checkpoints import listed, read_checkpoint

from .checkpoint_keys import module_to_diffusers

CONTAINERS = ("generator_lora", "generator_ema_lora", "state_dict")
_PEFT_PREFIX = "base_model.model."
_KOHYA = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)")
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight")
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
_KINDS: Mapping[str, str] = {"lora_A": "a", "lora_down": "a", "lora_B": "b", "lora_up": "b"}
_OTHER_MODEL = "It was made for another model or size: choose one that fits, or omit it."


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """delta W = scale * B A. a: [r, in], b: [out, r]."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of B A."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def delta(self) -> torch.Tensor:
        """scale * B A, [out, in] float32."""
        return (self.b.float() @ self.a.float()) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """The factors in one file, by the name of the weight they change in diffusers' naming. ignored: unused parts of the
    file."""

    source: Path
    factors: Mapping[str, Factors]
    ignored: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """How many weights it changes and its ranks, for the log."""
        ranks = sorted({factors.rank for factors in self.factors.values()})
        return f"{self.source.name}: {len(self.factors)} weights, rank {'/'.join(map(str, ranks))}"

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ModelLayoutError unless all factors fit weights of the model. expected: name -> shape."""
        unknown = [name for name in self.factors if name not in expected]
        if unknown:
            raise ModelLayoutError(
                f"{self.source} changes weights that this model does not have: {listed(unknown)}.", _OTHER_MODEL
            )
        for name, factors in self.factors.items():
            if factors.shape != expected[name]:
                raise ModelLayoutError(
                    f"{self.source}: the LoRA changes {name} by shape {list(factors.shape)}, the weight has "
                    f"{list(expected[name])}.",
                    _OTHER_MODEL,
                )


def read_adapter(path: Path, *, weight: float = 1.0, alpha: float = 0.0) -> Adapter:
    """Read a LoRA file for a Wan 2.1 transformer.

    weight: the user's factor. alpha: used if the file has none; 0: alpha = rank. Raises ModelLayoutError for a damaged
    file, an adapter of another kind, or unpaired factors.
    """
    checkpoint = read_checkpoint(path, CONTAINERS)
    pairs, alphas = _sorted_by_module(checkpoint.source, checkpoint.tensors)
    factors: dict[str, Factors] = {}
    for module, pair in pairs.items():
        if set(pair) != {"a", "b"}:
            raise ModelLayoutError(
                f"{path} has only one of the two factors for {module}.", "The file is incomplete: download it again."
            )
        a, b = pair["a"].flatten(1), pair["b"].flatten(1)
        if a.shape[0] != b.shape[1]:
            raise ModelLayoutError(
                f"{path}: the factors of {module} have the ranks {a.shape[0]} and {b.shape[1]}.",
                "The file is damaged or was combined from two: download it again.",
            )
        rank = a.shape[0]
        own = alphas.get(module, alpha or float(rank))
        factors[f"{module}.weight"] = Factors(a, b, weight * own / rank)
    if not factors:
        raise ModelLayoutError(f"{path} holds no LoRA weights.", "Choose another file.")
    return Adapter(source=path, factors=factors, ignored=checkpoint.ignored)


def merged(name: str, tensor: torch.Tensor, adapters: Sequence[Adapter]) -> torch.Tensor:
    """Return the weight `name` with all adapters added, at least in float32; the tensor itself if none change it."""
    changes = [adapter.factors[name] for adapter in adapters if name in adapter.factors]
    if not changes:
        return tensor
    total = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    for factors in changes:
        total += factors.delta().to(total.dtype)
    return total


def _sorted_by_module(
    source: Path, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, float]]:
    """Return ({module: {"a": ..., "b": ...}}, {module: alpha}), with modules in diffusers' naming."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for name, tensor in tensors.items():
        bare = name.removeprefix(_PEFT_PREFIX)
        factor, alpha = _FACTOR.fullmatch(bare), _ALPHA.fullmatch(bare)
        if factor is not None:
            pairs.setdefault(_module(factor["module"]), {})[_KINDS[factor["kind"]]] = tensor
        elif alpha is not None:
            alphas[_module(alpha["module"])] = float(tensor)
        else:
            unknown.append(name)
    if unknown:
        raise ModelLayoutError(
            f"{source} is not a plain LoRA: it holds {listed(unknown)}.",
            "Choose a LoRA with lora_A and lora_B (or lora_down and lora_up) weights.",
        )
    return pairs, alphas


def _module(name: str) -> str:
    """Return an adapter's module name in diffusers' naming; kohya's names have underscores for dots."""
    return module_to_diffusers(_KOHYA.sub(r"blocks.\1.\2.\3", name))
