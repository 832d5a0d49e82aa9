"""Owns loading an `ImageModel` by name: find, recognise, check, load, adapt.

Chooses the adapter for each class; independent of rings, frames and HTTP. Heavy libraries are imported when a model is
loaded, and only the parts that its classes need.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pipelines.core.conditions import PromptEncoder
from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError, ModelLayoutError
from pipelines.core.execution import Calls
from pipelines.core.host_memory import gib
from pipelines.files import hub
from pipelines.files.layout import Component, ModelLayout, find_weights, read_autoencoder, read_layout
from pipelines.files.lora_files import LoraFile
from pipelines.files.memory import Budget, Pictures, check_memory, free_memory_bytes
from pipelines.files.precision import Precision, choose_device, choose_precision
from pipelines.files.vocabulary import WORLD_FILE
from pipelines.image.model import ImageModel, ImageNetworks, LoraControl, MakeImageRuntime, SafetyChecker
from pipelines.image.runtime import plain_runtime
from pipelines.image.step_profile import PROFILE_FILE, StepProfile, weights_digest

from .betas import schedule_config
from .presets import ImagePreset, ModelFacts, choose_preset

logger = logging.getLogger(__name__)
# Guidance input of networks that were distilled with one: the default of diffusers' LCM pipeline (8.5), minus 1.
_DISTILLED_GUIDANCE = 7.5
_TOLD_BYTES = 2**30  # pictures that need more than this are worth a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The loading options of an image model. See `pipelines.files.loader_options.LoaderOptions`."""

    device: str = "auto"
    dtype: str = "auto"
    loras: tuple[LoraFile, ...] = ()
    autoencoder: str = "auto"
    allow_pickle: bool = False
    safety: bool = True
    width: int = 0
    height: int = 0
    frames_per_slot: int = 1
    slicing: str = "off"
    notice: Notify = logger.warning


def load_image_model(
    model: str, options: LoadOptions | None = None, make_runtime: MakeImageRuntime = plain_runtime
) -> ImageModel:
    """Do all of `load_engine` but create the engine. make_runtime: of a backend; the default runs networks eagerly."""
    options = options or LoadOptions()
    precision = choose_precision(choose_device(options.device), options.dtype)
    source = hub.resolve(model, allow_pickle=options.allow_pickle, notice=options.notice)
    layout = read_layout(source.folder)
    lora_ids = tuple(lora.hub_id for lora in options.loras)
    facts = ModelFacts(layout=layout, bundled=source.bundled, lora_ids=lora_ids)
    preset = choose_preset(facts)
    autoencoder = _find_autoencoder(layout, preset, options)
    sliced = _check_memory(layout, autoencoder, precision, options)
    loaded = _load_networks(layout, autoencoder, precision, options)
    if sliced:
        loaded = _sliced(loaded)
    if preset.notice:
        suffix = " (Unless one of the given LoRA files is an LCM-LoRA.)" if options.loras else ""
        options.notice(preset.notice + suffix)
    logger.info("%s: %s on %s, %s", source.name, preset.name, precision.device, precision.reason)
    return _assemble(source, facts, preset, loaded, make_runtime)


def _step_profile(layout: ModelLayout) -> StepProfile | None:
    """Return the profile beside the model's weights, if it has one and it was made for them. Raises ModelError."""
    file = layout.folder / PROFILE_FILE
    if not file.is_file():
        return None
    profile = StepProfile.read(file)
    profile.check(_weights(layout))
    return profile


def _weights(layout: ModelLayout, *, allow_pickle: bool = False) -> str:
    """Return what identifies the model for profiles: the digest of its denoiser's weight files."""
    return weights_digest(find_weights(layout.unet, allow_pickle=allow_pickle).files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """What was read from disk."""

    networks: ImageNetworks
    make_prompts: Callable[[Calls], PromptEncoder]
    safety: SafetyChecker | None
    lora: LoraControl | None
    weights: Callable[[], str]


def _assemble(
    source: hub.ModelSource, facts: ModelFacts, preset: ImagePreset, loaded: _Loaded, make_runtime: MakeImageRuntime
) -> ImageModel:
    layout, networks = facts.layout, loaded.networks
    config, channels = networks.unet.config, int(networks.autoencoder.config.latent_channels)
    if channels != config.in_channels:
        raise ModelLayoutError(
            f"The autoencoder has {channels} latent channels, the denoiser {config.in_channels}.",
            "Choose an autoencoder that was made for this model, or --autoencoder auto.",
        )
    runtime = make_runtime(networks)
    world = layout.folder / WORLD_FILE
    return ImageModel(
        name=source.name,
        device=networks.device,
        dtype=networks.dtype,
        size_px=_native_size(config.sample_size, runtime.codec.factor),
        runtime=runtime,
        prompts=loaded.make_prompts(runtime.make_executor().calls(warm_calls=2)),
        schedule=networks.schedule,
        defaults=dict(preset.defaults),
        licence=hub.licence_of(layout.folder),
        wants_time_ids=layout.family.wants_time_ids,
        safety=loaded.safety,
        lora=loaded.lora,
        vocabulary=str(world) if world.is_file() else None,
        load_profile=partial(_step_profile, layout),
        weights=loaded.weights,
    )


def _load_networks(layout: ModelLayout, autoencoder: Component, precision: Precision, options: LoadOptions) -> _Loaded:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pipelines.files.weights import load_component

    from .networks import channels_last, guidance_scale_embedding

    def load(network: Any, component: Component, dtype: torch.dtype) -> Any:
        return load_component(
            network, component, dtype=dtype, device=precision.device, allow_pickle=options.allow_pickle
        )

    unet: Any = channels_last(load(UNet2DConditionModel, layout.unet, precision.dtype))
    text_dtype = _text_dtype(precision)
    text_models = tuple(load(_text_class(part), part, text_dtype) for part in layout.text_encoders)
    lora: LoraControl | None = None
    if options.loras:
        from .lora import MergedLora

        lora = MergedLora(
            unet, text_models, [(hub.resolve_lora(lora, notice=options.notice), lora.weight) for lora in options.loras]
        )
    autoencoder_dtype = codec_dtype(autoencoder, layout, precision.dtype)
    distilled_width = unet.config.time_cond_proj_dim
    networks = ImageNetworks(
        unet=unet,
        autoencoder=channels_last(load(_autoencoder_class(autoencoder), autoencoder, autoencoder_dtype)),
        autoencoder_class=autoencoder.class_name,
        schedule=schedule_config(layout.scheduler),
        prediction_type=str(layout.scheduler.get("prediction_type", "epsilon")),
        device=precision.device,
        dtype=precision.dtype,
        codec_dtype=autoencoder_dtype,
        guidance_embedding=guidance_scale_embedding(_DISTILLED_GUIDANCE, distilled_width) if distilled_width else None,
    )
    return _Loaded(
        networks=networks,
        make_prompts=partial(_prompt_encoder, layout, text_models, precision.device),
        safety=_load_safety(layout, precision, options),
        lora=lora,
        weights=partial(_weights, layout, allow_pickle=options.allow_pickle),
    )


def _autoencoder_class(autoencoder: Component) -> Any:
    if autoencoder.class_name == "AutoencoderTiny":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        return AutoencoderTiny
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL


def codec_dtype(autoencoder: Component, layout: ModelLayout, dtype: torch.dtype) -> torch.dtype:
    """Return float32 if SDXL's own autoencoder would overflow float16 (its config's force_upcast), else dtype."""
    overflows = layout.family.wants_time_ids and autoencoder.class_name == "AutoencoderKL"
    overflows = overflows and bool(autoencoder.config.get("force_upcast", True))
    return torch.float32 if overflows and dtype is torch.float16 else dtype


def _text_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of text networks: at least float32 on a CPU, since prompts are encoded outside of ticks."""
    if precision.device.type == "cpu":
        return torch.promote_types(precision.dtype, torch.float32)
    return precision.dtype


def _text_class(component: Component) -> Any:
    from transformers.models.clip import modeling_clip

    return getattr(modeling_clip, component.class_name)


def _prompt_encoder(
    layout: ModelLayout, text_models: tuple[Any, ...], device: torch.device, calls: Calls
) -> PromptEncoder:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    from .clip_text import ClipPromptEncoder, DualClipPromptEncoder

    tokenizers = tuple(CLIPTokenizer.from_pretrained(part.folder, local_files_only=True) for part in layout.tokenizers)
    if len(tokenizers) == 1:
        return ClipPromptEncoder(tokenizers[0], text_models[0], device=device, calls=calls)
    return DualClipPromptEncoder(
        (tokenizers[0], tokenizers[1]), (text_models[0], text_models[1]), device=device, calls=calls
    )


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
    """Return the requested autoencoder as a component on disk, downloaded if needed."""
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


def _sliced(loaded: _Loaded) -> _Loaded:
    from pipelines.image.slicing import slice_autoencoder, slice_modules

    slice_modules(loaded.networks.unet)
    slice_autoencoder(loaded.networks.autoencoder)
    return replace(loaded, networks=replace(loaded.networks, sliced=True))


def _check_memory(layout: ModelLayout, autoencoder: Component, precision: Precision, options: LoadOptions) -> bool:
    """Raise OutOfMemoryError if the model does not fit. Returns whether to run it slice by slice."""
    text_dtype = _text_dtype(precision)
    budget = Budget(allow_pickle=options.allow_pickle)
    budget.add(layout.unet, precision.dtype)
    budget.add(autoencoder, codec_dtype(autoencoder, layout, precision.dtype))
    for part in layout.text_encoders:
        budget.add(part, text_dtype)
    if layout.safety_checker is not None and options.safety:
        budget.add(layout.safety_checker, text_dtype)
    budget.pictures = _pictures(autoencoder, codec_dtype(autoencoder, layout, precision.dtype), options)
    free = free_memory_bytes(precision.device)
    sliced = options.slicing == "on" or (options.slicing == "auto" and budget.needed_bytes > free)
    if sliced:
        budget.pictures = replace(budget.pictures, sliced=True)
    check_memory(budget, precision.device)
    if sliced and options.slicing == "auto":
        options.notice(f"{gib(free)} of memory are free: the networks run slice by slice, which takes longer.")
    if budget.pictures.needed_bytes > _TOLD_BYTES:
        options.notice(_large_notice(budget, layout, autoencoder, free))
    return sliced


def _large_notice(budget: Budget, layout: ModelLayout, autoencoder: Component, free_bytes: int) -> str:
    """What a size that is much larger than the model's own costs. Layers cost at least in proportion to pixels."""
    pictures, levels = budget.pictures, len(autoencoder.config.get("block_out_channels") or (0,))
    native = _native_size(layout.unet.config.get("sample_size") or 1, 2 ** (levels - 1))
    times = pictures.width * pictures.height / (native[0] * native[1])
    return (
        f"At {pictures.width}x{pictures.height} the model needs about {gib(budget.needed_bytes)} of memory, of "
        f"{gib(free_bytes)} that are free. Starting, and each frame, takes at least {times:.0f} times as long as at "
        f"its own {native[0]}x{native[1]}."
    )


def _pictures(autoencoder: Component, dtype: torch.dtype, options: LoadOptions) -> Pictures:
    """What decoding needs at a size that was asked for."""
    config = autoencoder.config
    if not options.width or not options.height:
        return Pictures()
    tiny, full = config.get("decoder_block_out_channels"), config.get("block_out_channels")
    return Pictures(
        width=options.width,
        height=options.height,
        frames=options.frames_per_slot,
        channels=int(tiny[-1] if tiny else full[0] if full else 0),
        itemsize=dtype.itemsize,
    )


def _native_size(sample_size: Any, factor: int) -> tuple[int, int]:
    """Return (width, height) in pixels from the UNet's sample_size in latents: one side, or (height, width)."""
    if isinstance(sample_size, int):
        return sample_size * factor, sample_size * factor
    height, width = sample_size
    return int(width) * factor, int(height) * factor
