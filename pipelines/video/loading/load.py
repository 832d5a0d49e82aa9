"""Owns how a `VideoModel` is loaded by name: find, recognise, check, load, and report what was chosen.

Combines the loaders of this folder; independent of streams, the cache and controls.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelLayoutError
from pipelines.files.hub import licence_of, resolve_lora
from pipelines.files.lora_files import LoraFile
from pipelines.files.precision import Precision, choose_device
from pipelines.video.model import MakeVideoRuntime, VideoModel, VideoNetworks
from pipelines.video.presets import Licence, VideoPreset
from pipelines.video.runtime import plain_runtime
from pipelines.video.wan.actions import ActionEmbedder, load_actions
from pipelines.video.wan.attention import choose_attention
from pipelines.video.wan.config import WanConfig

from .companions import load_codec, load_text
from .families import VideoFamily
from .folders import SETTINGS_FILE, VideoFolder
from .lora_merge import Adapter, read_adapter
from .recognise import Recognised, check_published_size, recognise
from .sizes import config_of
from .source import VideoSource, resolve_video
from .transformer import choose_video_precision, load_transformer

logger = logging.getLogger(__name__)
_UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLoadOptions:
    """Options of loading.

    family: a name of FAMILIES; "": recognise it. base: the Wan folder that goes with a checkpoint. autoencoder: "auto"
    (the folder's tiny one if it has one, else the stock one), "stock", "tiny", or the path of a tiny one's weights.
    text_encoder: where it resides between two prompts: "auto", "keep", "host" or "drop" (umt5.RESIDENCES).
    attention: a name of wan.attention.ATTENTION_BACKENDS or "auto".
    notice: called with sentences that the user should see.
    """

    device: str = "auto"
    dtype: str = "auto"
    family: str = ""
    base: str = ""
    autoencoder: str = "auto"
    loras: tuple[LoraFile, ...] = ()
    text_encoder: str = "auto"
    attention: str = "auto"
    notice: Notify = logger.warning


def load_video_model(
    model: str, options: VideoLoadOptions | None = None, make_runtime: MakeVideoRuntime = plain_runtime
) -> VideoModel:
    """Load a causal video model. model: see `source.resolve_video`. make_runtime: of a backend; by default eager.

    Raises ModelError and its subclasses, with the remedy: not found, another kind of file, damaged, weights that do not
    fit, a LoRA of another model, too little memory.
    """
    options = options or VideoLoadOptions()
    precision = choose_video_precision(choose_device(options.device), options.dtype)
    source = resolve_video(model, base=options.base, notice=options.notice)
    found = recognise(source, options.family)
    config = config_of(found.checkpoint.shapes, _beside(source.folder), str(found.checkpoint.source))
    check_published_size(found, config)
    preset, licence = _preset(source, found.family), _licence(source, found.family)
    adapters = _adapters(source, found.family, options)
    embedder = _embedder(source.folder, config, precision)
    attention = choose_attention(
        options.attention, device=precision.device, dtype=precision.dtype, head_dim=config.attention_head_dim
    )
    transformer, report = load_transformer(found.checkpoint, config, precision, adapters, action_embedder=embedder)
    codec = load_codec(source.folder, options.autoencoder, precision, options.notice)
    networks = VideoNetworks(transformer=transformer, codec=codec, attention=attention.backend)
    text = load_text(source.folder, precision, options.text_encoder)
    _check_parts(config, codec.latent_channels, text.text_dim)
    _report(found, licence, options.notice)
    logger.info("%s: %s (%s) on %s, %s", source.name, found.family.title, found.why, precision.device, precision.reason)
    logger.info("attention %s", attention.reason)
    return VideoModel(
        name=source.name,
        family=found.family.name,
        why=found.why,
        transformer=transformer,
        codec=codec,
        runtime=make_runtime(networks),
        text=text,
        preset=preset,
        dtype=precision.dtype,
        device=precision.device,
        licence=licence.summary,
        commercial=licence.commercial,
        weights=report,
    )


def _embedder(folder: VideoFolder, config: WanConfig, precision: Precision) -> ActionEmbedder | None:
    if folder.actions is None:
        return None
    return load_actions(folder.actions, dim=config.dim, device=precision.device, dtype=precision.dtype)


def _beside(folder: VideoFolder) -> Mapping[str, Any]:
    """Return the transformer's configuration with the number of text tokens, which diffusers' does not have."""
    tokens = folder.text_tokens
    return folder.transformer_config if tokens is None else {**folder.transformer_config, "text_len": tokens}


def _preset(source: VideoSource, family: VideoFamily) -> VideoPreset:
    """Return the family's preset; the folder's scheduler and zoetrope.json take precedence."""
    settings = source.folder.settings if source.checkpoint is None else {}
    changes: dict[str, Any] = {name: settings[name] for name in ("width", "height") if name in settings}
    if family.name == "wan" and source.checkpoint is None and source.folder.shift is not None:
        changes["shift"] = source.folder.shift
    own = settings.get("preset", {})
    known = {entry.name for entry in fields(VideoPreset)}
    unknown = sorted(own.keys() - known) if isinstance(own, dict) else [str(own)]
    if unknown:
        raise ModelLayoutError(
            f"{source.folder.folder / SETTINGS_FILE}: the preset has no {unknown[0]!r}.",
            f"Known entries: {', '.join(sorted(known))}.",
        )
    changes |= {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    try:
        return replace(family.preset, **changes)
    except TypeError as error:
        raise ModelLayoutError(
            f"{source.folder.folder / SETTINGS_FILE} has a value of the wrong kind ({error}).",
            "Sizes are whole numbers, steps a list of them.",
        ) from None


def _licence(source: VideoSource, family: VideoFamily) -> Licence:
    """Return the licence that zoetrope.json or a model card next to the weights states, else the published one. A card
    cannot lift a non-commercial licence."""
    if source.checkpoint is None and "licence" in source.folder.settings:
        return _named_licence(str(source.folder.settings["licence"]))
    folders = (source.folder.folder,) if source.checkpoint is None else source.checkpoint.parents[:2]
    cards = [card for folder in folders if not (card := licence_of(folder)).startswith(_UNKNOWN_LICENCE)]
    if not cards or not family.licence.commercial:
        return family.licence
    return _named_licence(cards[0])


def _named_licence(name: str) -> Licence:
    return Licence(name=name, commercial="-nc" not in name.lower() and "non-commercial" not in name.lower())


def _adapters(source: VideoSource, family: VideoFamily, options: VideoLoadOptions) -> tuple[Adapter, ...]:
    """Read the user's LoRA files, or the family's own if it is next to the checkpoint."""
    if options.loras:
        return tuple(read_adapter(_path(lora), weight=lora.weight) for lora in options.loras)
    if not family.lora or source.checkpoint is None:
        return ()
    file = source.checkpoint.parent / family.lora
    if not file.is_file():
        options.notice(
            f"{family.title} is published as a base and {family.lora}, which is not next to {source.checkpoint.name}: "
            "without it, longer streams drift."
        )
        return ()
    options.notice(f"{file.name} is merged into {source.checkpoint.name}, as {family.title} is published.")
    return (read_adapter(file, alpha=family.lora_alpha),)


def _path(lora: LoraFile) -> Path:
    path = Path(lora.source).expanduser()
    return path if path.exists() else resolve_lora(lora)


def _check_parts(config: WanConfig, latent_channels: int, text_dim: int) -> None:
    if latent_channels != config.in_channels:
        raise ModelLayoutError(
            f"The autoencoder has {latent_channels} latent channels, the transformer {config.in_channels}.",
            "Use the autoencoder of the model that the transformer is based on.",
        )
    if text_dim != config.text_dim:
        raise ModelLayoutError(
            f"The text encoder's embeddings are {text_dim} wide, the transformer reads {config.text_dim}.",
            "Use the text encoder of the model that the transformer is based on.",
        )


def _report(found: Recognised, licence: Licence, notice: Notify) -> None:
    family = found.family
    if not found.named:
        notice(f"{found.checkpoint.source.name} was recognised as {family.title} ({found.why}); --family overrides.")
    if family.notice:
        notice(family.notice)
    if not licence.commercial:
        notice(f"Licence of {family.title}: {licence.summary}.")
