"""Owns the recognition of a diffusers model folder: its pipeline class, its parts, their configurations and weights.

Reads JSON and file names only; independent of tensors, devices and networks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.errors import ModelLayoutError, UnsafeWeightsError

INDEX_FILE = "model_index.json"
_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_WEIGHT_STEMS = ("diffusion_pytorch_model", "model")
_PICKLE_STEMS = ("diffusion_pytorch_model", "pytorch_model")
_VARIANT = "fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFamily:
    """The parts of one kind of pipeline. text_encoders and tokenizers are sub-folder names, in order."""

    name: str
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    wants_time_ids: bool


_STABLE_DIFFUSION = PipelineFamily(
    name="Stable Diffusion", text_encoders=("text_encoder",), tokenizers=("tokenizer",), wants_time_ids=False
)
_STABLE_DIFFUSION_XL = PipelineFamily(
    name="Stable Diffusion XL",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    wants_time_ids=True,
)
_FAMILIES: Mapping[str, PipelineFamily] = {
    "StableDiffusionPipeline": _STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": _STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline": _STABLE_DIFFUSION,
    "LatentConsistencyModelImg2ImgPipeline": _STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": _STABLE_DIFFUSION_XL,
    "StableDiffusionXLImg2ImgPipeline": _STABLE_DIFFUSION_XL,
}
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "safety_checker": ("StableDiffusionSafetyChecker",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One sub-folder of a model: its class as named in the index, and its own configuration (may be empty)."""

    name: str
    folder: Path
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """A recognised model folder. safety_checker is None if the model has none."""

    folder: Path
    pipeline_class: str
    family: PipelineFamily
    unet: Component
    vae: Component
    text_encoders: tuple[Component, ...]
    tokenizers: tuple[Component, ...]
    scheduler: Mapping[str, Any]
    safety_checker: Component | None = None

    @property
    def weighted(self) -> tuple[Component, ...]:
        """The parts that have weights."""
        safety = () if self.safety_checker is None else (self.safety_checker,)
        return (self.unet, self.vae, *self.text_encoders, *safety)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The files with a part's weights. variant: "fp16" or None, as in diffusers."""

    files: tuple[Path, ...]
    variant: str | None
    pickled: bool


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelLayoutError if it is missing or not a JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLayoutError(
            f"{file} is missing.", "Give a folder in diffusers layout: model_index.json and a sub-folder for each part."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelLayoutError(f"{file} is not valid JSON ({error}).", "Download the model again.") from None
    if not isinstance(content, dict):
        raise ModelLayoutError(f"{file} does not contain a JSON object.", "Download the model again.")
    return content


def read_layout(folder: Path) -> ModelLayout:
    """Recognise a model folder by its model_index.json. Raises ModelLayoutError naming what is missing or unknown."""
    _refuse_single_file(folder)
    index = read_json(folder / INDEX_FILE)
    pipeline_class = str(index.get("_class_name"))
    family = _FAMILIES.get(pipeline_class)
    if family is None:
        raise ModelLayoutError(
            f"{folder / INDEX_FILE} names the pipeline class {pipeline_class}, which Zoetrope cannot run.",
            f"Known classes: {', '.join(_FAMILIES)}.",
        )
    return ModelLayout(
        folder=folder,
        pipeline_class=pipeline_class,
        family=family,
        unet=_component(folder, index, "unet"),
        vae=_component(folder, index, "vae"),
        text_encoders=tuple(_component(folder, index, name) for name in family.text_encoders),
        tokenizers=tuple(_component(folder, index, name) for name in family.tokenizers),
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
        safety_checker=_component(folder, index, "safety_checker") if _present(index, "safety_checker") else None,
    )


def read_autoencoder(folder: Path) -> Component:
    """Read a folder that holds a single autoencoder: config.json and its weights. Raises ModelLayoutError."""
    config = read_json(folder / "config.json")
    class_name = str(config.get("_class_name"))
    _check_class(folder / "config.json", "vae", class_name)
    return Component(name="vae", folder=folder, class_name=class_name, config=config)


def find_weights(component: Component, *, allow_pickle: bool = False, prefer_half: bool = False) -> WeightFiles:
    """Find the weight files of a part: safetensors, or pickles if nothing else exists and allow_pickle is set.

    prefer_half: take the fp16 variant where both exist. Raises ModelLayoutError when there are none and
    UnsafeWeightsError when only pickles exist and allow_pickle is not set.
    """
    variants = (_VARIANT, None) if prefer_half else (None, _VARIANT)
    for variant in variants:
        files = _safetensors(component.folder, variant)
        if files:
            return WeightFiles(files=files, variant=variant, pickled=False)
    pickles = _pickles(component.folder)
    if not pickles:
        expected = f"{_expected_stem(component)}.safetensors"
        raise ModelLayoutError(
            f"{component.folder / expected} is missing: the {component.name} has no weights.",
            "Download the model again, or give the folder of a complete model.",
        )
    if not allow_pickle:
        raise unsafe_weights(pickles[0])
    variant = _VARIANT if f".{_VARIANT}." in pickles[0].name else None
    return WeightFiles(files=pickles, variant=variant, pickled=True)


def unsafe_weights(file: Path) -> UnsafeWeightsError:
    """Return the error for weights that exist only as a pickle."""
    return UnsafeWeightsError(
        f"{file} is a pickle: reading it can run any code that its author put in.",
        "Use a copy of the model with .safetensors files, or pass --allow-pickle if you trust its source.",
    )


def is_pickle(file: Path) -> bool:
    """Return whether a file is a pickled checkpoint, judging by its suffix."""
    return file.suffix.lower() in _PICKLE_SUFFIXES


def _refuse_single_file(path: Path) -> None:
    if not path.is_file():
        return
    if is_pickle(path):
        raise unsafe_weights(path)
    raise ModelLayoutError(
        f"{path} is a single file, not a model folder.",
        "Convert it once with diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER).",
    )


def _present(index: Mapping[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _component(folder: Path, index: Mapping[str, Any], name: str) -> Component:
    if not _present(index, name):
        raise ModelLayoutError(
            f"{folder / INDEX_FILE} has no entry {name!r}.", "Give the folder of a complete diffusers model."
        )
    class_name = str(index[name][1])
    _check_class(folder / INDEX_FILE, name, class_name)
    own = folder / name
    if not own.is_dir():
        raise ModelLayoutError(f"The folder {own} is missing.", "Download the model again.")
    config = {} if name.startswith("tokenizer") else read_json(own / "config.json")
    return Component(name=name, folder=own, class_name=class_name, config=config)


def _check_class(file: Path, name: str, class_name: str) -> None:
    if class_name not in _CLASSES[name]:
        raise ModelLayoutError(
            f"{file} names the class {class_name} for {name!r}, which Zoetrope cannot load.",
            f"Known: {', '.join(_CLASSES[name])}.",
        )


def _expected_stem(component: Component) -> str:
    return "diffusion_pytorch_model" if component.name in ("unet", "vae") else "model"


def _safetensors(folder: Path, variant: str | None) -> tuple[Path, ...]:
    dotted = f".{variant}" if variant else ""
    for stem in _WEIGHT_STEMS:
        single = folder / f"{stem}{dotted}.safetensors"
        if single.is_file():
            return (single,)
        index = folder / f"{stem}.safetensors.index{dotted}.json"
        if index.is_file():
            return _shards(index)
    return ()


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    files = tuple(index.parent / name for name in names)
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise ModelLayoutError(
            f"{missing[0] if missing else index} is missing or names no shards.", "Download the model again."
        )
    return files


def _pickles(folder: Path) -> tuple[Path, ...]:
    for stem in _PICKLE_STEMS:
        for suffix in ("", f".{_VARIANT}"):
            file = folder / f"{stem}{suffix}.bin"
            if file.is_file():
                return (file,)
    return tuple(sorted(file for file in folder.iterdir() if is_pickle(file)))
