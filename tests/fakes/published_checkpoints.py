"""Builds checkpoints with the names, shapes and containers of the published causal video models, of any width.

The names are those of Wan 2.1's own modules, repeated here without using pipelines/, so that the mapping there can be
checked against them. Values are random and small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Dims:
    """Sizes of one Wan 2.1 transformer; the defaults are those of tests/fakes/tiny_video_model.py."""

    dim: int = 32
    ffn: int = 64
    layers: int = 2
    text: int = 32
    freq: int = 32
    channels: int = 16


TINY = Dims()
WAN_1_3B = Dims(dim=1536, ffn=8960, layers=30, text=4096, freq=256)
WAN_14B = Dims(dim=5120, ffn=13824, layers=40, text=4096, freq=256)


def wan_shapes(dims: Dims = TINY) -> Shapes:
    """Return shapes by the names of Wan 2.1's own T2V module: 27 in each block, 15 outside the blocks."""
    dim, ffn = dims.dim, dims.ffn
    shapes: Shapes = {
        "patch_embedding.weight": (dim, dims.channels, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        **_linear("text_embedding.0", dims.text, dim),
        **_linear("text_embedding.2", dim, dim),
        **_linear("time_embedding.0", dims.freq, dim),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", dim, 6 * dim),
    }
    for layer in range(dims.layers):
        block = f"blocks.{layer}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for name in ("q", "k", "v", "o"):
                shapes |= _linear(f"{block}.{attention}.{name}", dim, dim)
            for name in ("norm_q", "norm_k"):
                shapes[f"{block}.{attention}.{name}.weight"] = (dim,)
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        shapes |= _linear(f"{block}.ffn.0", dim, ffn)
        shapes |= _linear(f"{block}.ffn.2", ffn, dim)
    shapes |= {"head.modulation": (1, 2, dim), **_linear("head.head", dim, 4 * dims.channels)}
    return shapes


def wan_state(dims: Dims = TINY, *, seed: int = 11, dtype: torch.dtype = torch.float32) -> State:
    """Return random weights by Wan's own names, with matrices scaled to preserve the variance of activations."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in wan_shapes(dims).items():
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        values = torch.randn(shape, generator=random) * scale
        state[name] = (values * 0.1 + 1 if "norm" in name and name.endswith("weight") else values).to(dtype)
    return state


def prefixed(state: Mapping[str, Any], prefix: str = "model.") -> dict[str, Any]:
    """Rename as saved by the wrapper around the generator."""
    return {prefix + name: value for name, value in state.items()}


def sharded(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename as FSDP with activation checkpointing saves an EMA: wrappers around the model and every block."""
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            layer, _, inner = rest.partition(".")
            name = f"blocks.{layer}._fsdp_wrapped_module._checkpoint_wrapped_module.{inner}"
        renamed[f"model._fsdp_wrapped_module.{name}"] = value
    return renamed


def lora_state(
    dims: Dims = TINY, *, rank: int = 4, seed: int = 12, prefix: str = "base_model.model.", modules: str = "all"
) -> State:
    """Return a LoRA of every linear layer in every block, by PEFT's names (LongLive: rank 256). modules: "all" or
    "q"."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in wan_shapes(dims).items():
        linear = name.startswith("blocks.") and len(shape) == 2
        if linear and (modules == "all" or ".q." in name):
            module = prefix + name.removesuffix(".weight")
            state[f"{module}.lora_A.weight"] = torch.randn(rank, shape[1], generator=random) * shape[1] ** -0.5
            state[f"{module}.lora_B.weight"] = torch.randn(shape[0], rank, generator=random) * 0.1
    return state


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file. name: how it names a weight. container, ignored: as the loader must report them.

    file: its path in the repository. weights: which of `variants` must be loaded.
    """

    family: str
    file: str
    content: Callable[[Mapping[str, State]], Any]
    name: Callable[[str], str]
    container: str = ""
    ignored: tuple[str, ...] = ()
    weights: str = "generator"

    def write(self, folder: Path, variants: Mapping[str, State]) -> Path:
        """Write the file into a folder. variants: generator, ema, critic: states by Wan's own names. Returns its
        path."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.content(variants)
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path


def variants(dims: Dims = TINY) -> dict[str, State]:
    """Return three different sets of weights."""
    return {name: wan_state(dims, seed=20 + i) for i, name in enumerate(("generator", "ema", "critic"))}


def _in_model(name: str) -> str:
    return f"model.{name}"


def _in_shards(name: str) -> str:
    return next(iter(sharded({name: None})))


def _count(dims: Dims = TINY) -> int:
    return len(wan_shapes(dims))


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


PUBLISHED = (
    Published(
        family="causvid",
        file="autoregressive_checkpoint/model.pt",
        content=lambda v: {"generator": prefixed(v["generator"])},
        name=_in_model,
        container="generator",
    ),
    Published(
        family="self-forcing",
        file="checkpoints/self_forcing_dmd.pt",
        content=lambda v: {"generator_ema": sharded(v["ema"])},
        name=_in_shards,
        container="generator_ema",
        weights="ema",
    ),
    Published(
        family="longlive",
        file="models/longlive_base.pt",
        content=lambda v: {"generator": prefixed(v["generator"]), "step": 700},
        name=_in_model,
        container="generator",
        ignored=("step",),
    ),
    Published(
        family="rolling-forcing",
        file="checkpoints/rolling_forcing_dmd.pt",
        content=lambda v: {
            "generator": prefixed(v["generator"]),
            "critic": prefixed(v["critic"]),
            "generator_ema": sharded(v["ema"]),
        },
        name=_in_shards,
        container="generator_ema",
        ignored=(f"generator ({_count()} entries)", f"critic ({_count()} entries)"),
        weights="ema",
    ),
    Published(
        family="causal-forcing",
        file="chunkwise/causal_forcing.pt",
        content=lambda v: {"generator": prefixed(v["generator"])},
        name=_in_model,
        container="generator",
    ),
    Published(
        family="causal-forcing-framewise",
        file="framewise/causal_forcing.pt",
        content=lambda v: {"generator": prefixed(v["generator"]), "generator_ema": prefixed(v["ema"])},
        name=_in_model,
        container="generator_ema",
        ignored=(f"generator ({_count()} entries)",),
        weights="ema",
    ),
    Published(
        family="causal-forcing-2step",
        file="causal-forcing++/framewise-2step.pt",
        content=lambda v: {"generator_ema": prefixed(v["ema"])},
        name=_in_model,
        container="generator_ema",
        weights="ema",
    ),
    Published(
        family="causal-forcing-1step",
        file="causal-forcing++/framewise-1step.pt",
        content=lambda v: {"generator_ema": prefixed(v["ema"])},
        name=_in_model,
        container="generator_ema",
        weights="ema",
    ),
    Published(
        family="causal-forcing-long",
        file="chunkwise/longvideo.pt",
        content=lambda v: {"generator_ema": prefixed(v["ema"])},
        name=_in_model,
        container="generator_ema",
        weights="ema",
    ),
    Published(
        family="krea",
        file="krea-realtime-video-14b.safetensors",
        content=lambda v: prefixed(v["generator"]),
        name=_in_model,
    ),
    Published(
        family="streamdiffusion-v2",
        file="wan_causal_dmd_v2v/model.pt",
        content=lambda v: dict(v["generator"]),
        name=str,
    ),
    Published(
        family="shotstream",
        file="ckpts/shotstream_merged.pt",
        content=lambda v: {"generator": prefixed(v["generator"])},
        name=_in_model,
        container="generator",
    ),
    Published(
        family="wan",
        file="Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors",
        content=lambda v: dict(v["generator"]),
        name=str,
    ),
)
