"""Owns the model kind of causal video models: Wan 2.1 and its derivatives, which pipelines/video loads and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.contracts import Engine, Notify
from pipelines.core.errors import ModelError
from pipelines.files.loader_options import LoaderOptions

from .base import LoadContext, ModelKind, engine_origin

if TYPE_CHECKING:
    from pipelines.video.model import VideoNetworks, VideoRuntime


class VideoKind(ModelKind):
    """A Wan folder, a checkpoint that goes with one, a family's name or its repository."""

    name = "video"

    def recognises(self, model: str) -> bool:
        """See `is_video_model`."""
        from pipelines.video.loading.source import is_video_model

        return is_video_model(model)

    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """See `load_video_engine`."""
        if options.slicing == "on":
            raise ModelError(f"{model} is a video model, which has no slicing.", "Use --slicing off.")
        from pipelines.core.light_imports import defer_unused_parts

        defer_unused_parts()
        from cache.kv.policies import POLICIES
        from pipelines.conditioning import CONDITIONERS
        from pipelines.files.hub import bundled_names
        from pipelines.files.precision import choose_device
        from pipelines.video.loading.engine import load_video_engine

        backend = context.backend(options.backend, self.name, choose_device(options.device))
        bundled = model in bundled_names()
        origin = engine_origin(model, options, backend.name, bundled=bundled) if context.prepare else None

        def make_runtime(networks: VideoNetworks) -> VideoRuntime:
            return backend.video(replace(networks, origin=origin, notice=context.notice))

        return load_video_engine(
            model,
            options,
            make_runtime=make_runtime,
            conditioners=CONDITIONERS if context.conditioners is None else context.conditioners,
            policies=POLICIES if context.policies is None else context.policies,
            tick_log=context.tick_log,
            notice=context.notice,
        )

    def weight_files(self, model: str, options: LoaderOptions) -> list[tuple[str, Path]]:
        """Return the files of transformer, autoencoders, text encoder and actions; LoRA files are not included."""
        from pipelines.video.loading.source import video_weight_files

        return video_weight_files(model, options.video.base)

    def describe(self, folder: Path) -> str:
        """Describe a Wan folder, recognised by its configuration."""
        from pipelines.video.loading.folders import is_video_folder

        return "video (Wan)" if is_video_folder(folder) else ""

    def published(self) -> str:
        """List the families by name."""
        from pipelines.video.loading.families import FAMILIES

        return f"Video models by name: {', '.join(FAMILIES)}. docs/video-models.md has their files and licences."

    def download(self, model: str, *, allow_pickle: bool, notice: Notify) -> Path:
        """Fetch a model; returns the path of its checkpoint, or of its folder if it has no separate checkpoint."""
        from pipelines.video.loading.source import resolve_video

        source = resolve_video(model, notice=notice)
        return source.checkpoint or source.folder.folder
