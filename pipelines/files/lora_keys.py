"""Owns the reading of LoRA files: kohya and diffusers/PEFT key names become module names, by diffusers' conversions.

Deals with names and factors only; independent of how they are merged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.core.errors import ModelLayoutError

_PARTS = ("unet", "text_encoder", "text_encoder_2")
_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_UNSUPPORTED = ("dora_scale", "lora_mid", "hada_", "lokr_", "lora_magnitude_vector", ".diff")
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """delta W = scale * B A. a: [r, in] or [r, in, kh, kw]; b: [out, r] or [out, r, 1, 1]."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether B A has the rows and columns of a weight of this shape."""
        rank = self.a.shape[0]
        rows, columns = shape[0], math.prod(shape[1:])
        return self.b.shape[0] == rows and self.b[0].numel() == rank and self.a[0].numel() == columns


def read_lora(file: Path, unet_config: Any) -> dict[str, dict[str, LoraFactors]]:
    """Read a .safetensors file as {part: {module name: factors}}; parts are unet, text_encoder, text_encoder_2.

    Raises ModelLayoutError for a damaged file, an adapter that is not a plain LoRA, and unknown keys.
    """
    state, metadata = _read(file)
    unsupported = sorted(key for key in state if any(mark in key for mark in _UNSUPPORTED))
    if unsupported:
        raise ModelLayoutError(
            f"{file} is not a plain LoRA (it contains {unsupported[0]}).", "Choose a LoRA, not DoRA, LoHa or LoKr."
        )
    if any(key.startswith(_KOHYA_PREFIXES) for key in state):
        state = _fold_alphas(state)
    parts = {part: keys for part, keys in _split(file, _to_diffusers(file, state, unet_config)).items() if keys}
    scales = _adapter_metadata(metadata)
    factors = {part: _pairs(file, part, _to_peft(part, keys), scales.get(part, {})) for part, keys in parts.items()}
    if not factors:
        raise ModelLayoutError(f"{file} contains no LoRA weights.", "Choose another file.")
    return factors


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelLayoutError(f"{file} is not a readable safetensors file ({error}).", "Download it again.") from None


def _fold_alphas(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fold kohya's factor alpha / r of the delta B A into B, so that the names of alphas need no conversion."""
    folded = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    for key, alpha in state.items():
        down, up = (key.removesuffix(".alpha") + end for end in (".lora_down.weight", ".lora_up.weight"))
        if key.endswith(".alpha") and down in folded and up in folded:
            folded[up] = folded[up].float() * (float(alpha) / folded[down].shape[0])
    return folded


def _to_diffusers(file: Path, state: dict[str, torch.Tensor], unet_config: Any) -> dict[str, torch.Tensor]:
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    try:
        converted, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(state), unet_config=unet_config)
    except (ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelLayoutError(
            f"{file} has keys of an unknown naming scheme: {reason}.", "Choose a LoRA made for Stable Diffusion."
        ) from None
    assert isinstance(converted, dict)
    return converted


def _split(file: Path, state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Split by part. Without any prefix (files of attention processors only), everything belongs to the denoiser."""
    if not any(key.startswith(tuple(f"{part}." for part in _PARTS)) for key in state):
        return {"unet": dict(state)}
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    unknown = []
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in parts:
            parts[part][rest] = value
        else:
            unknown.append(key)
    if unknown:
        raise _unmatched(file, unknown)
    return parts


def _to_peft(part: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys to MODULE.lora_A.weight and MODULE.lora_B.weight, by diffusers' tables."""
    from diffusers.utils.state_dict_utils import (
        StateDictType,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    if any(_A in key for key in state):
        renamed = state
    elif part == "unet":
        renamed = convert_unet_state_dict_to_peft(state)
    else:  # the table for old names covers newer ones too; without a type, diffusers rejects partial LoRAs
        renamed = convert_state_dict_to_peft(state, original_type=StateDictType.DIFFUSERS_OLD)
    # transformers 5 has no text_model level in CLIPTextModel; CLIPTextModelWithProjection still has one.
    if part == "text_encoder":
        renamed = {key.removeprefix("text_model."): value for key, value in renamed.items()}
    return dict(renamed)


def _pairs(
    file: Path, part: str, state: dict[str, torch.Tensor], settings: Mapping[str, Any]
) -> dict[str, LoraFactors]:
    factors: dict[str, LoraFactors] = {}
    rest = dict(state)
    for key in state:
        if not key.endswith(_A):
            continue
        module = key.removesuffix(_A)
        if module + _B in rest:
            a, b = rest.pop(key), rest.pop(module + _B)
            factors[module] = LoraFactors(a, b, _peft_scale(settings, module, a.shape[0]))
    if rest:
        raise _unmatched(file, [f"{part}.{key}" for key in rest])
    return factors


def _adapter_metadata(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return PEFT settings by part, as diffusers writes them to the file's header; empty if there are none."""
    settings: dict[str, dict[str, Any]] = {}
    for key, value in json.loads(metadata.get("lora_adapter_metadata", "{}")).items():
        part, _, name = key.partition(".")
        settings.setdefault(part, {})[name] = value
    return settings


def _peft_scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023); 1 if the file has no alpha."""
    if "lora_alpha" not in settings:
        return 1.0
    alpha = float(settings["lora_alpha"])
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if module == pattern.lstrip("^") or module.endswith(f".{pattern}"):
            alpha = float(value)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _unmatched(file: Path, keys: list[str]) -> ModelLayoutError:
    shown = ", ".join(sorted(keys)[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
    return ModelLayoutError(f"{file} has keys that match no layer: {shown}.", "Choose a LoRA made for this model.")
