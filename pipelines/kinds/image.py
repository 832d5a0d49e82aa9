"""Owns the model kind of image models in diffusers layout, which pipelines/image runs: all that other kinds reject."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.contracts import Engine, Notify
from pipelines.core.errors import ModelError
from pipelines.files.loader_options import LoaderOptions

from .base import LoadContext, ModelKind, engine_origin

if TYPE_CHECKING:
    from pipelines.backends.base import Backend
    from pipelines.image.loading.presets import ImagePreset
    from pipelines.image.model import ImageNetworks, ImageRuntime

_PUBLISHED = (
    "stabilityai/sd-turbo",
    "stabilityai/sdxl-turbo",
    "stable-diffusion-v1-5/stable-diffusion-v1-5 with --lora latent-consistency/lcm-lora-sdv1-5",
)


class ImageKind(ModelKind):
    """Stable Diffusion and related models: a bundled name, a folder, or a hub id."""

    name = "image"

    def recognises(self, model: str) -> bool:
        """Return True: any name that no earlier kind recognised. Loading reports what is wrong with it."""
        return True

    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """See `load_image_model`."""
        if video := options.video.chosen():
            raise ModelError(
                f"{model} is not a video model: {', '.join(video)} does not apply to it.", "Omit that option."
            )
        from pipelines.core.light_imports import defer_unused_parts

        defer_unused_parts()
        from pipelines.conditioning import CONDITIONERS
        from pipelines.files import hub
        from pipelines.files.precision import choose_device
        from pipelines.image.cache_profile import CacheProfile
        from pipelines.image.loading.load import LoadOptions, load_image_model

        profile = CacheProfile.read(Path(options.cache_profile)) if options.cache_profile else None

        wanted = LoadOptions(
            device=options.device,
            dtype=options.dtype,
            loras=options.loras,
            autoencoder=options.autoencoder,
            allow_pickle=options.allow_pickle,
            safety=options.safety,
            width=options.width,
            height=options.height,
            frames_per_slot=options.frames_per_slot,
            slicing=options.slicing,
            notice=context.notice,
        )
        backend = context.backend(options.backend, self.name, choose_device(options.device))
        bundled = hub.resolve(model, allow_pickle=options.allow_pickle).bundled
        origin = engine_origin(model, options, backend.name, bundled=bundled) if context.prepare else None

        def make_runtime(networks: ImageNetworks) -> ImageRuntime:
            chosen = for_slices(backend, options, context) if networks.sliced else backend
            return chosen.image(replace(networks, origin=origin, notice=context.notice))

        image_model = load_image_model(model, wanted, make_runtime)
        from pipelines.image.engine import ImageEngine

        return ImageEngine(
            image_model,
            width=options.width,
            height=options.height,
            frames_per_slot=options.frames_per_slot,
            max_slots=options.max_slots,
            tick_log=context.tick_log,
            stages=options.stages,
            step_cache=options.step_cache,
            cache_profile=profile,
            conditioners=CONDITIONERS if context.conditioners is None else context.conditioners,
        )

    def weight_files(self, model: str, options: LoaderOptions) -> list[tuple[str, Path]]:
        """Return the weight files of the model's parts and of the LoRA files."""
        from pipelines.files import hub
        from pipelines.files.layout import find_weights, read_layout

        pickle = options.allow_pickle
        parts = read_layout(hub.resolve(model, allow_pickle=pickle).folder).weighted
        files = [(part.name, file) for part in parts for file in find_weights(part, allow_pickle=pickle).files]
        return files + [("lora", hub.resolve_lora(lora)) for lora in options.loras]

    def describe(self, folder: Path) -> str:
        """Return the model's preset and pipeline class."""
        from pipelines.files.layout import INDEX_FILE, read_layout

        if not (folder / INDEX_FILE).is_file():
            return ""
        return f"{_preset(folder).name} ({read_layout(folder).pipeline_class})"

    def published(self) -> str:
        """List the models that have been tested."""
        return f"Published models that are known to work: {'; '.join(_PUBLISHED)}."

    def download(self, model: str, *, allow_pickle: bool, notice: Notify) -> Path:
        """Fetch a model from the hub; gives notice of its preset, its licence and any shortcoming."""
        from pipelines.files import hub

        hub.check_hub_id(model)
        folder = hub.download(model, allow_pickle=allow_pickle, notice=notice)
        preset = _preset(folder)
        notice(f"{model} is a {self.describe(folder)} model; licence: {hub.licence_of(folder)}")
        if preset.notice:
            notice(preset.notice)
        return folder


def for_slices(backend: Backend, options: LoaderOptions, context: LoadContext) -> Backend:
    """Return the backend, or eager in place of one that "auto" chose. Raises ModelError if a requested one cannot."""
    if backend.runs_slices:
        return backend
    if options.backend != "auto":
        raise ModelError(
            f"The backend {backend.name} cannot run slice by slice.", "Use --backend eager, or --slicing off."
        )
    context.notice(f"The backend eager is used, since {backend.name} cannot run slice by slice.")
    return context.backends["eager"]


def _preset(folder: Path) -> ImagePreset:
    from pipelines.files import hub
    from pipelines.files.layout import read_layout
    from pipelines.image.loading.presets import ModelFacts, choose_preset

    bundled = folder.parent == hub.BUNDLED_FOLDER
    return choose_preset(ModelFacts(layout=read_layout(folder), bundled=bundled))
