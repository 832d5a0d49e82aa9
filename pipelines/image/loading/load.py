"""Owns the way from a model's name to an `ImageModel`: find, recognise, check, load, adapt.

Knows which adapter goes with which class; knows nothing of rings, frames and HTTP. Heavy libraries are imported when
a model is loaded, and only the parts of them that its classes need.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.core.conditions import PromptEncoder
from pipelines.core.errors import ModelError, ModelLayoutError
from pipelines.files import hub
from pipelines.files.layout import Component, ModelLayout, read_autoencoder, read_layout
from pipelines.files.lora_files import LoraFile
from pipelines.files.memory import Budget, check_memory
from pipelines.files.precision import Precision, choose_device, choose_precision
from pipelines.files.vocabulary import WORLD_FILE
from pipelines.image.model import ImageModel, LatentCodec, LoraControl, SafetyChecker

from .betas import schedule_config
from .presets import ImagePreset, ModelFacts, choose_preset

logger = logging.getLogger(__name__)
Notice = Callable[[str], None]
# Guidance that networks distilled with guidance as an input get: the default of diffusers' LCM pipeline, minus 1.
_DISTILLED_GUIDANCE = 7.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a user may ask of loading. See `load_engine`."""

    device: str = "auto"
    dtype: str = "auto"
    loras: tuple[LoraFile, ...] = ()
    autoencoder: str = "auto"
    allow_pickle: bool = False
    safety: bool = True
    notice: Notice = logger.warning


def load_image_model(model: str, options: LoadOptions | None = None) -> ImageModel:
    """Everything of `load_engine` but the engine."""
    options = options or LoadOptions()
    precision = choose_precision(choose_device(options.device), options.dtype)
    source = hub.resolve(model, allow_pickle=options.allow_pickle, notice=options.notice)
    layout = read_layout(source.folder)
    lora_ids = tuple(lora.hub_id for lora in options.loras)
    facts = ModelFacts(layout=layout, bundled=source.bundled, lora_ids=lora_ids)
    preset = choose_preset(facts)
    autoencoder = _find_autoencoder(layout, preset, options)
    _check_memory(layout, autoencoder, precision, options)
    loaded = _load_networks(layout, autoencoder, precision, options)
    if preset.notice:
        unless = " (Unless one of the given LoRA files is an LCM-LoRA.)" if options.loras else ""
        options.notice(preset.notice + unless)
    logger.info("%s: %s on %s, %s", source.name, preset.name, precision.device, precision.reason)
    return _assemble(source, facts, preset, precision, loaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Networks:
    """What was read from the disk, adapted where it does not depend on the schedule."""

    unet: Any
    codec: LatentCodec
    prompts: PromptEncoder
    safety: SafetyChecker | None
    lora: LoraControl | None


def _assemble(
    source: hub.ModelSource, facts: ModelFacts, preset: ImagePreset, precision: Precision, networks: _Networks
) -> ImageModel:
    from .networks import UNetDenoiser, guidance_scale_embedding

    layout, config = facts.layout, networks.unet.config
    schedule = schedule_config(layout.scheduler)
    distilled_width = config.time_cond_proj_dim
    denoiser = UNetDenoiser(
        networks.unet,
        schedule=schedule,
        prediction_type=str(layout.scheduler.get("prediction_type", "epsilon")),
        device=precision.device,
        dtype=precision.dtype,
        guidance_embedding=guidance_scale_embedding(_DISTILLED_GUIDANCE, distilled_width) if distilled_width else None,
    )
    if networks.codec.latent_channels != config.in_channels:
        raise ModelLayoutError(
            f"The autoencoder has {networks.codec.latent_channels} latent channels, the denoiser {config.in_channels}.",
            "Choose an autoencoder that was made for this model, or --autoencoder auto.",
        )
    world = layout.folder / WORLD_FILE
    return ImageModel(
        name=source.name,
        device=precision.device,
        dtype=precision.dtype,
        size_px=_native_size(config.sample_size, networks.codec.factor),
        denoiser=denoiser,
        codec=networks.codec,
        prompts=networks.prompts,
        schedule=schedule,
        defaults=dict(preset.defaults),
        licence=hub.licence_of(layout.folder),
        wants_time_ids=layout.family.wants_time_ids,
        safety=networks.safety,
        lora=networks.lora,
        vocabulary=str(world) if world.is_file() else None,
    )


def _load_networks(
    layout: ModelLayout, autoencoder: Component, precision: Precision, options: LoadOptions
) -> _Networks:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pipelines.files.weights import load_component

    from .networks import channels_last

    def load(network: Any, component: Component, dtype: torch.dtype) -> Any:
        return load_component(
            network, component, dtype=dtype, device=precision.device, allow_pickle=options.allow_pickle
        )

    unet = channels_last(load(UNet2DConditionModel, layout.unet, precision.dtype))
    text_dtype = _text_dtype(precision)
    text_models = tuple(load(_text_class(part), part, text_dtype) for part in layout.text_encoders)
    lora: LoraControl | None = None
    if options.loras:
        from .lora import MergedLora

        lora = MergedLora(
            unet, text_models, [(hub.resolve_lora(lora, notice=options.notice), lora.weight) for lora in options.loras]
        )
    return _Networks(
        unet=unet,
        codec=_load_codec(autoencoder, layout, precision, load),
        prompts=_prompt_encoder(layout, text_models, precision.device),
        safety=_load_safety(layout, precision, options),
        lora=lora,
    )


def _load_codec(
    autoencoder: Component,
    layout: ModelLayout,
    precision: Precision,
    load: Callable[[Any, Component, torch.dtype], Any],
) -> LatentCodec:
    from .networks import KLCodec, TinyImageCodec, channels_last

    dtype = codec_dtype(autoencoder, layout, precision.dtype)
    if autoencoder.class_name == "AutoencoderTiny":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        tiny = channels_last(load(AutoencoderTiny, autoencoder, dtype))
        return TinyImageCodec(tiny, dtype=dtype, device=precision.device)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return KLCodec(channels_last(load(AutoencoderKL, autoencoder, dtype)), dtype=dtype, device=precision.device)


def codec_dtype(autoencoder: Component, layout: ModelLayout, dtype: torch.dtype) -> torch.dtype:
    """float32 where SDXL's own autoencoder would overflow float16 (its configuration's force_upcast), else dtype."""
    overflows = layout.family.wants_time_ids and autoencoder.class_name == "AutoencoderKL"
    overflows = overflows and bool(autoencoder.config.get("force_upcast", True))
    return torch.float32 if overflows and dtype is torch.float16 else dtype


def _text_dtype(precision: Precision) -> torch.dtype:
    """Prompts are encoded outside of ticks: on a CPU at least in float32."""
    if precision.device.type == "cpu":
        return torch.promote_types(precision.dtype, torch.float32)
    return precision.dtype


def _text_class(component: Component) -> Any:
    from transformers.models.clip import modeling_clip

    return getattr(modeling_clip, component.class_name)


def _prompt_encoder(layout: ModelLayout, text_models: tuple[Any, ...], device: torch.device) -> PromptEncoder:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    from .clip_text import ClipPromptEncoder, DualClipPromptEncoder

    tokenizers = tuple(CLIPTokenizer.from_pretrained(part.folder, local_files_only=True) for part in layout.tokenizers)
    if len(tokenizers) == 1:
        return ClipPromptEncoder(tokenizers[0], text_models[0], device=device)
    return DualClipPromptEncoder((tokenizers[0], tokenizers[1]), (text_models[0], text_models[1]), device=device)


def _load_safety(layout: ModelLayout, precision: Precision, options: LoadOptions) -> SafetyChecker | None:
    if layout.safety_checker is None or not options.safety:
        return None
    from .safety import ClipSafetyChecker

    return ClipSafetyChecker.load(
        layout.safety_checker,
        layout.folder / "feature_extractor",
        device=precision.device,
        dtype=_text_dtype(precision),
        allow_pickle=options.allow_pickle,
    )


def _find_autoencoder(layout: ModelLayout, preset: ImagePreset, options: LoadOptions) -> Component:
    """The autoencoder that was asked for, as a component on the disk."""
    if options.autoencoder == "auto":
        return layout.vae
    name = options.autoencoder
    if name == "tiny":
        if layout.vae.class_name == "AutoencoderTiny":
            return layout.vae
        if preset.tiny_autoencoder is None:
            raise ModelError("No tiny autoencoder is known for this model.", "Use --autoencoder auto or name one.")
        name = preset.tiny_autoencoder
    folder = hub.resolve(name, parts=hub.AUTOENCODER_PARTS, notice=options.notice).folder
    return read_layout(folder).vae if (folder / "model_index.json").is_file() else read_autoencoder(folder)


def _check_memory(layout: ModelLayout, autoencoder: Component, precision: Precision, options: LoadOptions) -> None:
    text_dtype = _text_dtype(precision)
    budget = Budget(allow_pickle=options.allow_pickle)
    budget.add(layout.unet, precision.dtype)
    budget.add(autoencoder, codec_dtype(autoencoder, layout, precision.dtype))
    for part in layout.text_encoders:
        budget.add(part, text_dtype)
    if layout.safety_checker is not None and options.safety:
        budget.add(layout.safety_checker, text_dtype)
    check_memory(budget, precision.device)


def _native_size(sample_size: Any, factor: int) -> tuple[int, int]:
    """(width, height) in pixels from the UNet's sample_size: a side, or (height, width), in latents."""
    if isinstance(sample_size, int):
        return sample_size * factor, sample_size * factor
    height, width = sample_size
    return int(width) * factor, int(height) * factor
