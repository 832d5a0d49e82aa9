"""The model kind of image models in diffusers' layout: whatever no other kind recognises. pipelines/image runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.contracts import Engine
from pipelines.core.errors import ModelError
from pipelines.files.loader_options import LoaderOptions

from .base import LoadContext, ModelKind, Notice

if TYPE_CHECKING:
    import torch

    from pipelines.image.loading.presets import ImagePreset

_BACKENDS = ("auto", "eager", "cuda-graph")
_PUBLISHED = (
    "stabilityai/sd-turbo",
    "stabilityai/sdxl-turbo",
    "stable-diffusion-v1-5/stable-diffusion-v1-5 with --lora latent-consistency/lcm-lora-sdv1-5",
)


class ImageKind(ModelKind):
    """Stable Diffusion and its kin: a bundled name, a folder, or a hub id."""

    name = "image"

    def recognises(self, model: str) -> bool:
        """Everything that has come so far down the table; loading says what a name lacks."""
        return True

    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """See `load_image_model`."""
        if video := options.video.chosen():
            raise ModelError(f"{model} is no video model: {', '.join(video)} means nothing to it.", "Leave that out.")
        if options.backend not in _BACKENDS:
            raise ModelError(f"There is no backend {options.backend!r}.", f"Use one of: {', '.join(_BACKENDS)}.")
        from pipelines.conditioning import CONDITIONERS
        from pipelines.image.loading.load import LoadOptions, load_image_model

        wanted = LoadOptions(
            device=options.device,
            dtype=options.dtype,
            loras=options.loras,
            autoencoder=options.autoencoder,
            allow_pickle=options.allow_pickle,
            safety=options.safety,
            notice=context.notice,
        )
        image_model = load_image_model(model, wanted)
        from pipelines.image.engine import ImageEngine

        return ImageEngine(
            image_model,
            width=options.width,
            height=options.height,
            frames_per_slot=options.frames_per_slot,
            max_slots=options.max_slots,
            backend=_choose_backend(options.backend, image_model.device),
            tick_log=context.tick_log,
            stages=options.stages,
            conditioners=CONDITIONERS if context.conditioners is None else context.conditioners,
        )

    def weight_files(self, model: str, options: LoaderOptions) -> list[tuple[str, Path]]:
        """Of the model's own parts and of the LoRA files."""
        from pipelines.files import hub
        from pipelines.files.layout import find_weights, read_layout

        pickle = options.allow_pickle
        parts = read_layout(hub.resolve(model, allow_pickle=pickle).folder).weighted
        files = [(part.name, file) for part in parts for file in find_weights(part, allow_pickle=pickle).files]
        return files + [("lora", hub.resolve_lora(lora)) for lora in options.loras]

    def describe(self, folder: Path) -> str:
        """Its preset and its pipeline's class."""
        from pipelines.files.layout import INDEX_FILE, read_layout

        if not (folder / INDEX_FILE).is_file():
            return ""
        return f"{_preset(folder).name} ({read_layout(folder).pipeline_class})"

    def published(self) -> str:
        """Those that were tried."""
        return f"Published models that are known to work: {'; '.join(_PUBLISHED)}."

    def download(self, model: str, *, allow_pickle: bool, notice: Notice) -> Path:
        """From the hub; says what it is, its licence and what it lacks."""
        from pipelines.files import hub

        hub.check_hub_id(model)
        folder = hub.download(model, allow_pickle=allow_pickle, notice=notice)
        preset = _preset(folder)
        notice(f"{model} is a {self.describe(folder)} model; licence: {hub.licence_of(folder)}")
        if preset.notice:
            notice(preset.notice)
        return folder


def _choose_backend(requested: str, device: torch.device) -> str:
    """auto: a CUDA graph on CUDA, eager elsewhere. Raises ModelError when a graph is asked of a CPU."""
    if requested == "auto":
        return "cuda-graph" if device.type == "cuda" else "eager"
    if requested == "cuda-graph" and device.type != "cuda":
        raise ModelError(f"The backend cuda-graph needs a CUDA device, not {device.type}.", "Use --backend eager.")
    return requested


def _preset(folder: Path) -> ImagePreset:
    from pipelines.files import hub
    from pipelines.files.layout import read_layout
    from pipelines.image.loading.presets import ModelFacts, choose_preset

    bundled = folder.parent == hub.BUNDLED_FOLDER
    return choose_preset(ModelFacts(layout=read_layout(folder), bundled=bundled))
