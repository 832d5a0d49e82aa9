"""Owns the loading of a transformer's companions: the autoencoder, stock or tiny, and the text encoder.

Reads diffusers' sub-folders and the files of an original Wan 2.1 folder. Independent of the transformer and of streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelLayoutError
from pipelines.files.checkpoints import listed, read_checkpoint
from pipelines.files.layout import Component, read_json
from pipelines.files.precision import Precision
from pipelines.video.codecs.codec import VideoCodec
from pipelines.video.wan.umt5 import TEXT_TOKENS, Umt5TextEncoder, load_encoder, read_tokenizer

from .checkpoint_keys import KeyReport
from .companion_keys import is_original_vae, residual_blocks, umt5_to_transformers, vae_to_diffusers
from .folders import VideoFolder

_PADDINGS: Mapping[str, Literal["end", "front"]] = {"end": "end", "front": "front"}


def load_codec(folder: VideoFolder, autoencoder: str, precision: Precision, notice: Notify) -> VideoCodec:
    """Load the requested codec: "auto", "stock", "tiny", or the path of a tiny one's weights.

    Raises ModelLayoutError if there is none of that kind or its weights do not fit.
    """
    if autoencoder == "auto" and folder.tiny_vae is not None:
        notice(f"The tiny autoencoder {folder.tiny_vae.name} is used; --autoencoder stock is slower and exact.")
        autoencoder = "tiny"
    if autoencoder in ("auto", "stock"):
        return load_stock_codec(folder.vae, precision)
    if autoencoder != "tiny":
        return load_tiny_codec(Path(autoencoder).expanduser(), precision)
    if folder.tiny_vae is None:
        raise ModelLayoutError(
            f"{folder.folder} has no tiny autoencoder.",
            "Put taew2_1.safetensors (or taew2_1.pth) into its folder tiny_vae, or give its path.",
        )
    return load_tiny_codec(folder.tiny_vae, precision)


def load_stock_codec(path: Path, precision: Precision) -> VideoCodec:
    """Load AutoencoderKLWan from diffusers' sub-folder or from Wan2.1_VAE.pth, as a streaming codec."""
    from pipelines.video.codecs.wan import WanCodec

    return WanCodec(load_stock_autoencoder(path, precision))


def load_stock_autoencoder(path: Path, precision: Precision) -> Any:
    """Load diffusers' AutoencoderKLWan strictly, with dtype and device of `precision`. path: a sub-folder, or a weight
    file."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from pipelines.files.weights import load_component

    if path.is_dir():
        config = read_json(path / "config.json")
        name = str(config.get("_class_name"))
        if name != "AutoencoderKLWan":
            raise ModelLayoutError(
                f"{path} holds a {name}, not Wan 2.1's AutoencoderKLWan.", "Use the vae folder of a Wan 2.1 model."
            )
        component = Component(name="vae", folder=path, class_name=name, config=config)
        return load_component(AutoencoderKLWan, component, dtype=precision.dtype, device=precision.device)
    checkpoint = read_checkpoint(path, ("state_dict", "model"))
    if not is_original_vae(checkpoint.tensors):
        raise ModelLayoutError(f"{path} is not Wan 2.1's autoencoder.", "Give Wan2.1_VAE.pth of Wan 2.1.")
    shapes = checkpoint.shapes
    blocks = residual_blocks(shapes)
    with torch.device("meta"):
        module = AutoencoderKLWan(
            base_dim=_first_dim(shapes, "encoder.conv1.weight", path),
            z_dim=_first_dim(shapes, "conv2.weight", path),
            num_res_blocks=blocks,
        )
    return _assign(module, checkpoint.tensors, lambda name: vae_to_diffusers(name, blocks), path, precision)


def load_tiny_codec(path: Path, precision: Precision) -> VideoCodec:
    """Load a tiny autoencoder of the taew2_1 kind from published weights, as a streaming codec. path: a file or its
    folder.

    A config.json in the folder may set encoder_padding: "end" (as published) or "front".
    """
    from pipelines.video.codecs.tiny import TinyVideoCodec, load_tiny_autoencoder

    checkpoint = read_checkpoint(path, ("state_dict", "model"))
    config = path / "config.json"
    padding = read_json(config).get("encoder_padding", "end") if config.is_file() else "end"
    if padding not in _PADDINGS:
        raise ModelLayoutError(f"{config}: encoder_padding is {padding!r}.", f"Use one of: {', '.join(_PADDINGS)}.")
    module = load_tiny_autoencoder(checkpoint.tensors, encoder_padding=_PADDINGS[padding])
    return TinyVideoCodec(module.to(device=precision.device, dtype=precision.dtype).eval().requires_grad_(False))


def load_text(folder: VideoFolder, precision: Precision, residence: str) -> Umt5TextEncoder:
    """Make the text encoder, which loads its weights at the first prompt. residence: see `Umt5TextEncoder`."""
    dtype = precision.dtype
    if precision.device.type == "cpu":  # prompts are encoded outside ticks: use float32 if it costs no GPU memory
        dtype = torch.promote_types(dtype, torch.float32)
    path = folder.text_encoder
    text_dim = int(read_json(path / "config.json")["d_model"]) if path.is_dir() else _original_text_dim(path)
    load = load_encoder if path.is_dir() else load_original_encoder
    return Umt5TextEncoder(
        read_tokenizer(folder.tokenizer),
        lambda: load(path, dtype=dtype),
        text_dim=text_dim,
        device=precision.device,
        residence=residence,
        tokens=folder.text_tokens or TEXT_TOKENS,
    )


def load_original_encoder(file: Path, *, dtype: torch.dtype) -> Any:
    """Load models_t5_umt5-xxl-enc-bf16.pth into transformers' UMT5EncoderModel, in dtype on the CPU."""
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    checkpoint = read_checkpoint(file, ("state_dict", "model"))
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if umt5_to_transformers(name)}
    vocabulary, width = _shape(shapes, "token_embedding.weight", file)
    buckets, heads = _shape(shapes, "blocks.0.pos_embedding.embedding.weight", file)
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=_first_dim(shapes, "blocks.0.attn.q.weight", file) // heads,
        d_ff=_first_dim(shapes, "blocks.0.ffn.fc1.weight", file),
        num_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        module = UMT5EncoderModel(config)
    tied = {"encoder.embed_tokens.weight": "shared.weight"}
    precision = Precision(device=torch.device("cpu"), dtype=dtype, reason="")
    _assign(module, checkpoint.tensors, umt5_to_transformers, file, precision, tied)
    module.tie_weights()  # one parameter again, so that the large embedding is moved to the GPU only once
    return module


def _original_text_dim(file: Path) -> int:
    return int(_shape(read_checkpoint(file, ("state_dict", "model")).shapes, "token_embedding.weight", file)[1])


def _assign(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    rename: Callable[[str], str | None],
    path: Path,
    precision: Precision,
    tied: Mapping[str, str] | None = None,
) -> nn.Module:
    """Assign weights strictly to a module made on the meta device. tied: parameters that share another's weight."""
    tied = tied or {}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in tied}
    named = {name: rename(name) for name in tensors}
    mapped = {name: target for name, target in named.items() if target in expected}
    KeyReport(
        mapped={name: str(target) for name, target in mapped.items()},
        missing=tuple(name for name in expected if name not in set(mapped.values())),
        unexpected=tuple(name for name in tensors if name not in mapped),
        mismatched={
            str(target): (tuple(tensors[name].shape), expected[str(target)])
            for name, target in mapped.items()
            if tuple(tensors[name].shape) != expected[str(target)]
        },
    ).raise_unless_complete(str(path))
    weights = {
        str(target): tensors[name].to(device=precision.device, dtype=precision.dtype) for name, target in mapped.items()
    }
    module.load_state_dict({**weights, **{name: weights[other] for name, other in tied.items()}}, assign=True)
    return module.eval().requires_grad_(False)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, path: Path) -> tuple[int, ...]:
    if name not in shapes:
        raise ModelLayoutError(
            f"{path} lacks {name}: it holds {listed(shapes)}.",
            "It is another kind of file or incomplete: download it again.",
        )
    return shapes[name]


def _first_dim(shapes: Mapping[str, tuple[int, ...]], name: str, path: Path) -> int:
    return _shape(shapes, name, path)[0]
