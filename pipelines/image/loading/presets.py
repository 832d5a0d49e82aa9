"""Owns the table of presets: defaults that suit a model, chosen by the configuration in its folder.

Independent of weights and devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipelines.files.layout import ModelLayout

LCM_LORA_SD15 = "latent-consistency/lcm-lora-sdv1-5"
LCM_LORA_SDXL = "latent-consistency/lcm-lora-sdxl"
_FEW_STEP_LORAS = frozenset({LCM_LORA_SD15, LCM_LORA_SDXL})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the choice of a preset depends on: the folder's configuration, and the hub ids of the LoRA files."""

    layout: ModelLayout
    bundled: bool = False
    lora_ids: tuple[str, ...] = ()

    @property
    def scheduler_class(self) -> str:
        """The class named in scheduler_config.json."""
        return str(self.layout.scheduler.get("_class_name"))

    @property
    def cross_attention_dim(self) -> int:
        """Width of the prompt embeddings: 768 for SD 1, 1024 for SD 2 and SD-Turbo, 2048 for SDXL."""
        width = self.layout.unet.config.get("cross_attention_dim", 0)
        return int(width[0] if isinstance(width, list) else width)

    @property
    def is_adversarially_distilled(self) -> bool:
        """Whether there is an Euler scheduler with trailing timesteps, as in SD-Turbo and SDXL-Turbo only."""
        euler = self.scheduler_class in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        return euler and self.layout.scheduler.get("timestep_spacing") == "trailing"

    @property
    def has_few_step_lora(self) -> bool:
        """Whether one of the LoRA files is an LCM-LoRA."""
        return not _FEW_STEP_LORAS.isdisjoint(self.lora_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreset:
    """Control defaults for the models that `suits` accepts, by name in the control table.

    tiny_autoencoder: hub id of the small autoencoder with the same latent space, or None. notice: a sentence for the
    user, or "".
    """

    name: str
    suits: Callable[[ModelFacts], bool]
    defaults: Mapping[str, object] = field(default_factory=dict)
    tiny_autoencoder: str | None = None
    notice: str = ""


_LCM = {"step_function": "lcm", "guidance_mode": "none", "guidance_scale": 1.0}
_TURBO = {"step_function": "turbo", "steps": 1, "strength": 0.5, "guidance_mode": "none", "guidance_scale": 1.0}
_TAESD, _TAESDXL = "madebyollin/taesd", "madebyollin/taesdxl"
_NOT_DISTILLED = (
    "This model is not distilled for few steps: its pictures will be blurred. Add an LCM-LoRA: --lora {lora}, "
    "or another one that fits this model."
)

_PRESETS = (
    ImagePreset(
        name="bundled",
        suits=lambda facts: facts.bundled,
        defaults={**_LCM, "steps": 2, "strength": 0.5},
    ),
    ImagePreset(
        name="SDXL-Turbo",
        suits=lambda facts: facts.layout.family.wants_time_ids and facts.is_adversarially_distilled,
        defaults=_TURBO,
        tiny_autoencoder=_TAESDXL,
    ),
    ImagePreset(
        name="SD-Turbo",
        suits=lambda facts: facts.is_adversarially_distilled,
        defaults=_TURBO,
        tiny_autoencoder=_TAESD,
    ),
    ImagePreset(
        name="SDXL with LCM",
        suits=lambda facts: facts.layout.family.wants_time_ids and _is_latent_consistency(facts),
        defaults={**_LCM, "steps": 4, "strength": 0.5},
        tiny_autoencoder=_TAESDXL,
    ),
    ImagePreset(
        name="Stable Diffusion with LCM",
        suits=lambda facts: _is_latent_consistency(facts),
        defaults={**_LCM, "steps": 4, "strength": 0.5},
        tiny_autoencoder=_TAESD,
    ),
    ImagePreset(
        name="SDXL",
        suits=lambda facts: facts.layout.family.wants_time_ids,
        defaults={**_LCM, "steps": 4, "strength": 0.5},
        tiny_autoencoder=_TAESDXL,
        notice=_NOT_DISTILLED.format(lora=LCM_LORA_SDXL),
    ),
    ImagePreset(
        name="Stable Diffusion 1",
        suits=lambda facts: facts.cross_attention_dim == 768,
        defaults={**_LCM, "steps": 4, "strength": 0.5},
        tiny_autoencoder=_TAESD,
        notice=_NOT_DISTILLED.format(lora=LCM_LORA_SD15),
    ),
    ImagePreset(
        name="Stable Diffusion",
        suits=lambda facts: True,
        defaults={**_LCM, "steps": 4, "strength": 0.5},
        tiny_autoencoder=_TAESD,
        notice="This model is not distilled for few steps: its pictures will be blurred. Add an LCM-LoRA that fits it.",
    ),
)


def choose_preset(facts: ModelFacts) -> ImagePreset:
    """Return the first preset of the table that suits; the last one suits every model."""
    return next(preset for preset in _PRESETS if preset.suits(facts))


def _is_latent_consistency(facts: ModelFacts) -> bool:
    return facts.scheduler_class == "LCMScheduler" or facts.has_few_step_lora
