"""Owns the selection of files from a hub repository: only the parts in use, safetensors, 16-bit where available.

Works on names only; independent of network and disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from pipelines.core.errors import ModelLayoutError

from .layout import INDEX_FILE, is_pickle, unsafe_weights

MODEL_PARTS = (
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
    "safety_checker",
    "feature_extractor",
)
_CARD_FILES = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_TEXT_SUFFIXES = (".json", ".txt")
_WEIGHT_STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
_HALF = "fp16"


def select_files(
    hub_id: str, names: Collection[str], *, parts: Sequence[str] = MODEL_PARTS, allow_pickle: bool = False
) -> tuple[str, ...]:
    """Return the files of a repository to fetch for the given parts ("" is the root).

    Raises ModelLayoutError when it is not a diffusers model, UnsafeWeightsError when a part has only pickles.
    """
    chosen = [name for name in _CARD_FILES if name in names]
    if "" not in parts:
        if INDEX_FILE not in names:
            raise ModelLayoutError(
                f"{hub_id} has no {INDEX_FILE}: it is not a model in diffusers layout.",
                "Choose a repository in diffusers layout, or convert the checkpoint with diffusers first.",
            )
        chosen.append(INDEX_FILE)
    for part in parts:
        inside = sorted(name for name in names if _folder(name) == part and name not in chosen)
        texts = [name for name in inside if name.endswith(_TEXT_SUFFIXES) and ".index." not in name]
        chosen += texts + _weights(hub_id, inside, allow_pickle)
    return tuple(chosen)


def _weights(hub_id: str, inside: Sequence[str], allow_pickle: bool) -> list[str]:
    known = [name for name in inside if PurePosixPath(name).name.split(".", 1)[0].split("-0", 1)[0] in _WEIGHT_STEMS]
    tensors = [name for name in known if name.endswith((".safetensors", ".safetensors.index.json", ".index.fp16.json"))]
    pickles = [name for name in known if is_pickle(Path(name))]
    for candidates in (tensors, pickles if allow_pickle else ()):
        half = [name for name in candidates if f".{_HALF}" in PurePosixPath(name).name]
        plain = [name for name in candidates if _is_plain(name)]
        if half or plain:
            return half or plain
    if pickles:
        raise unsafe_weights(Path(hub_id) / pickles[0])
    return []


def _is_plain(name: str) -> bool:
    """Return whether the file's name has no variant (fp16, non_ema, fp32)."""
    return PurePosixPath(name).name.count(".") == 1 or name.endswith(".safetensors.index.json")


def _folder(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent
