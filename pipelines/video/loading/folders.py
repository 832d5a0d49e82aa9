"""Owns the recognition of Wan 2.1 model folders, in diffusers' layout or in Wan's original one, and of their parts.

Reads only JSON and file names; independent of tensors and networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.core.errors import ModelLayoutError
from pipelines.files.layout import INDEX_FILE, read_json

SETTINGS_FILE = "zoetrope.json"
_PIPELINES = ("WanPipeline", "WanVideoToVideoPipeline")
_ORIGINAL_VAE = "Wan2.1_VAE.pth"
_ORIGINAL_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
_ORIGINAL_TOKENIZER = "google/umt5-xxl"
_ORIGINAL_NAMES: Mapping[str, str] = {
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "num_layers": "num_layers",
    "eps": "eps",
}
_TINY_FOLDER = "tiny_vae"
ACTIONS_FOLDER = "actions"
_SETTINGS = ("family", "width", "height", "licence", "preset", "text_tokens")
_LEVELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFolder:
    """The parts of a model folder.

    transformer, vae, text_encoder: a sub-folder with config.json and weights, or a weight file of an original folder.
    transformer_config: by diffusers' names; may be empty. tiny_vae: file or folder of the tiny autoencoder, if there is
    one. actions: their folder, if the transformer takes any. shift: of the scheduler's configuration. settings: the
    contents of zoetrope.json, which describes the weights.
    """

    folder: Path
    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    transformer_config: Mapping[str, Any] = field(default_factory=dict)
    shift: float | None = None
    tiny_vae: Path | None = None
    actions: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text_tokens(self) -> int | None:
        """Tokens of a prompt, if zoetrope.json sets them; None: Wan's. Raises ModelLayoutError."""
        tokens = self.settings.get("text_tokens")
        if tokens is None or (isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1):
            return tokens
        raise ModelLayoutError(
            f"{self.folder / SETTINGS_FILE}: text_tokens is {tokens!r}.", "Give a whole number of at least 1."
        )


def is_video_folder(folder: Path) -> bool:
    """Whether a folder is a complete Wan model, judging by its index or its file names. Reads no weights."""
    if not folder.is_dir():
        return False
    if (folder / INDEX_FILE).is_file():
        return str(read_json(folder / INDEX_FILE).get("_class_name")).startswith("Wan")
    return _is_original(folder)


def read_video_folder(folder: Path, *, as_base: bool = False) -> VideoFolder:
    """Find the parts of a model folder. Raises a ModelLayoutError that names what is missing or of another kind.

    as_base: only the codec and the text encoder are needed, for a checkpoint from elsewhere; the transformer may be
    missing.
    """
    if not (folder / INDEX_FILE).is_file() and _is_original(folder):
        return _read_original(folder)
    index = read_json(folder / INDEX_FILE)
    pipeline = str(index.get("_class_name"))
    if "ImageToVideo" in pipeline:
        raise ModelLayoutError(
            f"{folder} is an image-to-video model ({pipeline}), which needs an image encoder.",
            "Use a text-to-video model of Wan 2.1: these streams also take a first picture.",
        )
    if pipeline not in _PIPELINES:
        raise ModelLayoutError(
            f"{folder / INDEX_FILE} names the pipeline class {pipeline}, which is not a Wan 2.1 text-to-video model.",
            f"Supported classes: {', '.join(_PIPELINES)}.",
        )
    parts = {name: folder / name for name in ("transformer", "vae", "text_encoder", "tokenizer")}
    for name, part in parts.items():
        if not part.is_dir() and not (as_base and name == "transformer"):
            raise ModelLayoutError(f"The folder {part} is missing.", f"Download the model's {name} again.")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    shift = read_json(scheduler).get("flow_shift") if scheduler.is_file() else None
    config = parts["transformer"] / "config.json"
    return VideoFolder(
        folder=folder,
        **parts,
        transformer_config={} if as_base and not config.is_file() else read_json(config),
        shift=None if shift is None else float(shift),
        tiny_vae=_tiny(folder),
        actions=None if as_base else _actions(folder),
        settings=read_settings(folder),
    )


def folders_near(file: Path) -> tuple[Path, ...]:
    """Find model folders near a checkpoint: its own folder and those below it, else one level up, and so on."""
    path = file if file.is_dir() else file.parent
    for level in (path, *path.resolve().parents)[:_LEVELS]:
        found = tuple(dict.fromkeys(folder for folder in _below(level) if is_video_folder(folder)))
        if found:
            return found
    return ()


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Read zoetrope.json of a folder; empty if there is none. Raises ModelLayoutError for unknown entries."""
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return {}
    settings = read_json(file)
    unknown = sorted(settings.keys() - set(_SETTINGS))
    if unknown:
        raise ModelLayoutError(f"{file} has the entry {unknown[0]!r}.", f"Known entries: {', '.join(_SETTINGS)}.")
    return settings


def _below(level: Path) -> Iterator[Path]:
    yield level
    for name in (INDEX_FILE, _ORIGINAL_VAE):
        for depth in ("*", "*/*"):
            yield from sorted(found.parent for found in level.glob(f"{depth}/{name}"))


def _is_original(folder: Path) -> bool:
    return (folder / _ORIGINAL_VAE).is_file() and (folder / _ORIGINAL_TEXT).is_file()


def _read_original(folder: Path) -> VideoFolder:
    tokenizer = folder / _ORIGINAL_TOKENIZER
    if not tokenizer.is_dir():
        raise ModelLayoutError(f"The folder {tokenizer} is missing.", "Download the tokenizer of the model again.")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type", "t2v") != "t2v":
        raise ModelLayoutError(
            f"{folder} is a model of the type {config['model_type']!r}, not text-to-video.",
            "Use a text-to-video model of Wan 2.1.",
        )
    named = {new: config[old] for old, new in _ORIGINAL_NAMES.items() if old in config}
    if "num_heads" in config and "dim" in config:
        named["attention_head_dim"] = int(config["dim"]) // int(config["num_heads"])
    return VideoFolder(
        folder=folder,
        transformer=folder,
        vae=folder / _ORIGINAL_VAE,
        text_encoder=folder / _ORIGINAL_TEXT,
        tokenizer=tokenizer,
        transformer_config=named,
        tiny_vae=_tiny(folder),
        settings=read_settings(folder),
    )


def _actions(folder: Path) -> Path | None:
    path = folder / ACTIONS_FOLDER
    return path if path.is_dir() else None


def _tiny(folder: Path) -> Path | None:
    files = [folder / _TINY_FOLDER, *sorted(folder.glob("taew2_1*.safetensors")), *sorted(folder.glob("taew2_1*.pth"))]
    return next((file for file in files if file.exists()), None)
