"""Owns the names in published video checkpoints: strips wrappers, maps original Wan 2.1 names to diffusers' names.

Every original name has one target, looked up as a whole and never replaced piecewise, so that no rule can undo another:
the original norm3 is diffusers' norm2, and the original norm2 (diffusers' norm3) has no parameters. Works on names and
shapes; independent of files and values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.core.errors import ModelLayoutError
from pipelines.files.checkpoints import listed

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PREFIXES = ("module.", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")

_TOP: Mapping[str, str] = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_TOP_PARAMETERS: Mapping[str, str] = {"head.modulation": "scale_shift_table"}
_ATTENTION: Mapping[str, str] = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_IN_BLOCK: Mapping[str, str] = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in _ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in _ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK_PARAMETERS: Mapping[str, str] = {"modulation": "scale_shift_table"}

# Other kinds of files: a name that identifies each, what it is, and the remedy.
_OTHERS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"(^|\.)(img_emb|image_embedder)\.|\.(k_img|v_img|add_k_proj|add_v_proj)\."),
        "an image-to-video transformer with an image encoder (I2V)",
        "Use a text-to-video checkpoint: these streams also take a first picture, without an image encoder.",
    ),
    (re.compile(r"(^|\.)vace_"), "a VACE transformer", "Use a text-to-video checkpoint."),
    (re.compile(r"motion_encoder\.|face_adapter\."), "Wan-Animate", "Use a text-to-video checkpoint of Wan 2.1."),
    (
        re.compile(r"\.(lora_A|lora_B|lora_down|lora_up)\."),
        "a LoRA, not a whole model",
        "Give the base checkpoint as the model and this file as --lora.",
    ),
    (
        re.compile(r"(^|\.)(decoder\.middle\.|decoder\.mid_block\.|decoder\.upsamples\.)"),
        "a video autoencoder",
        "Give the transformer's checkpoint as the model; the autoencoder belongs in the base folder.",
    ),
    (
        re.compile(r"^(encoder|decoder)\.\d+\."),
        "a tiny video autoencoder (TAEHV)",
        "Give the transformer's checkpoint as the model and this file as --autoencoder.",
    ),
    (
        re.compile(r"(^token_embedding\.)|(^shared\.)|(^encoder\.block\.)|(\.pos_embedding\.embedding\.)"),
        "a text encoder (UMT5)",
        "Give the transformer's checkpoint as the model; the text encoder belongs in the base folder.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """How the names of a checkpoint were matched to a model's parameters.

    mapped: published name -> name in diffusers' WanTransformer3DModel. ignored: unused names and parts of the file.
    missing: parameters without weights in the file. unexpected: names that match no parameter. mismatched:
    parameter -> (shape in the file, shape in the model).
    """

    mapped: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        """Whether every parameter has weights of its shape, and every name of the file was recognised."""
        return not (self.missing or self.unexpected or self.mismatched)

    def raise_unless_complete(self, source: str) -> None:
        """Raise a ModelLayoutError that lists what is missing, unexpected or of another shape."""
        if self.complete:
            return
        wrong = [
            f"{name}: {list(shape)} in the file, {list(expected)} in the model"
            for name, (shape, expected) in self.mismatched.items()
        ]
        problems = [
            f"{kind} {listed(names)}"
            for kind, names in (("missing", self.missing), ("unexpected", self.unexpected), ("other shapes", wrong))
            if names
        ]
        raise ModelLayoutError(
            f"The weights in {source} do not fit the model: {'; '.join(problems)}.",
            "The file is of another model or size, or is incomplete: download it again, or name its --family.",
        )


def strip(name: str) -> str:
    """Strip from a published name the wrappers of training tools and the name of the outer module."""
    bare = _WRAPPERS.sub("", name)
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if bare.startswith(prefix):
                bare, changed = bare[len(prefix) :], True
    return bare


def to_diffusers(name: str) -> str | None:
    """Return the name in diffusers' WanTransformer3DModel of a stripped original name; None for unknown names."""
    if name in _TOP_PARAMETERS:
        return _TOP_PARAMETERS[name]
    block = _BLOCK.fullmatch(name)
    if block is not None:
        index, rest = block.groups()
        if rest in _BLOCK_PARAMETERS:
            return f"blocks.{index}.{_BLOCK_PARAMETERS[rest]}"
        module, _, parameter = rest.rpartition(".")
        return f"blocks.{index}.{_IN_BLOCK[module]}.{parameter}" if module in _IN_BLOCK else None
    module, _, parameter = name.rpartition(".")
    return f"{_TOP[module]}.{parameter}" if module in _TOP else None


def module_to_diffusers(module: str) -> str:
    """Return a module's name in diffusers' WanTransformer3DModel, given in the original or in diffusers' naming."""
    target = to_diffusers(f"{strip(module + '.')}weight")
    return strip(module) if target is None else target.removesuffix(".weight")


def is_original(names: Iterable[str]) -> bool:
    """Whether stripped names follow the original naming of Wan 2.1 rather than diffusers'."""
    return any(name.startswith("blocks.") and ".self_attn." in name for name in names)


def refuse_others(names: Iterable[str], source: str) -> None:
    """Raise a ModelLayoutError that says what a file is, unless its names are of a Wan 2.1 text-to-video model."""
    known = tuple(names)
    bare = tuple(strip(name) for name in known)
    for pattern, what, remedy in _OTHERS:
        found = next((name for name in bare if pattern.search(name)), None)
        if found is not None:
            raise ModelLayoutError(f"{source} is {what} (it holds {found}).", remedy)
    if not any(_BLOCK.match(name) for name in bare) or not any("patch_embedding" in name for name in bare):
        raise ModelLayoutError(
            f"{source} contains no Wan 2.1 transformer: its names are {listed(known)}.",
            "Give a checkpoint of a Wan 2.1 text-to-video model; docs/video-models.md lists the supported ones.",
        )


def match(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, ignored: Iterable[str] = ()
) -> KeyReport:
    """Match a file's names to a model's parameters.

    shapes: published name -> shape. expected: diffusers' name -> shape. ignored: what else the file contains. A second
    published name for the same parameter is reported as unexpected.
    """
    bare = {name: strip(name) for name in shapes}
    original = is_original(bare.values())
    mapped: dict[str, str] = {}
    unexpected: list[str] = []
    taken: set[str] = set()
    for name, short in bare.items():
        target = to_diffusers(short) if original else short
        if target is None or target not in expected or target in taken:
            unexpected.append(name)
        else:
            mapped[name] = target
            taken.add(target)
    mismatched = {
        target: (shapes[name], expected[target]) for name, target in mapped.items() if shapes[name] != expected[target]
    }
    return KeyReport(
        mapped=mapped,
        ignored=tuple(ignored),
        missing=tuple(name for name in expected if name not in taken),
        unexpected=tuple(unexpected),
        mismatched=mismatched,
    )
