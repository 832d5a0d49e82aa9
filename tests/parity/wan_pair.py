"""Builds our transformer and diffusers' with the same random weights, and a key/value view that simply grows."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import make_policy
from cache.rotary import Rotary
from pipelines.video.wan.attention import PLAIN, block_causal
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.text_cache import PlainText, TextView
from pipelines.video.wan.transformer import CausalWanTransformer

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
}
TEXT_TOKENS, PROMPT_TOKENS = 32, 9


def stock_model(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """Return random weights that preserve the variance of activations, with no norm or modulation at its neutral
    value."""
    generator = torch.Generator().manual_seed(seed)
    model = WanTransformer3DModel(**{**TINY, **changes}).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.dim() < 2 or "table" in name else 1 / math.sqrt(parameter[0].numel())
        parameter.normal_(0, spread, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return model


def our_model(stock: WanTransformer3DModel) -> CausalWanTransformer:
    """Return our model with those weights."""
    config = WanConfig.from_diffusers({**stock.config, "text_len": TEXT_TOKENS})
    ours = CausalWanTransformer(config).eval().requires_grad_(False)
    ours.load_state_dict(stock.state_dict())
    return ours


class Inputs:
    """A batch of random latents with a timestep for each frame, and prompts padded with zero rows."""

    def __init__(self, *, batch: int = 2, frames: int = 5, height: int = 4, width: int = 6, channels: int = 4) -> None:
        generator = torch.Generator().manual_seed(7)
        self.latents = torch.randn((batch, channels, frames, height, width), generator=generator)
        table = torch.tensor([1000.0, 937.5, 833.3333, 625.0, 0.0, 500.25, 12.5])
        self.timesteps = torch.stack([table.roll(row)[:frames] for row in range(batch)])
        self.embeddings = torch.randn((batch, TEXT_TOKENS, 24), generator=generator)
        self.embeddings[:, PROMPT_TOKENS:] = 0

    def double(self) -> Inputs:
        """Return the inputs in float64."""
        self.latents, self.embeddings = self.latents.double(), self.embeddings.double()
        return self

    def text(self, ours: CausalWanTransformer) -> TextView:
        """Return the prompts without a cache."""
        return PlainText(ours, self.embeddings)

    def stock(self, model: WanTransformer3DModel) -> torch.Tensor:
        """Return diffusers' output, which requires a timestep per token."""
        _, rows, columns = model.config.patch_size
        tokens = (self.latents.shape[3] // rows) * (self.latents.shape[4] // columns)
        per_token = self.timesteps.repeat_interleave(tokens, 1)
        answer: torch.Tensor = model(self.latents, per_token, self.embeddings, return_dict=False)[0]
        return answer

    def ours(self, model: CausalWanTransformer, **options: Any) -> torch.Tensor:
        """Return our output, without a cache."""
        answer: torch.Tensor = model(self.latents, self.timesteps, self.text(model), **options)
        return answer


class GrowingView:
    """Keeps every chunk: unrotated keys, rotated at each pass by their positions. `begin` opens a chunk."""

    observes = False

    def __init__(self, model: CausalWanTransformer, grid: tuple[int, int]) -> None:
        self._model, self._grid = model, grid
        self._keys: list[list[torch.Tensor]] = [[] for _ in range(model.layers)]
        self._values: list[list[torch.Tensor]] = [[] for _ in range(model.layers)]
        self._chunks: list[int] = []
        self.writes = 0

    @property
    def tokens(self) -> int:
        """Length of the stored past including the open chunk."""
        return sum(self._chunks) * math.prod(self._grid)

    def begin(self, frames: int) -> None:
        """Open a chunk: its passes overwrite the same cells."""
        self._chunks.append(frames)
        for layer in range(self._model.layers):
            self._keys[layer].append(torch.empty(0))
            self._values[layer].append(torch.empty(0))

    def rotation(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cos, sin) of frames start .. stop - 1."""
        return self._model.full_window(stop - start, self._grid, torch.arange(start, stop)).query_rotation

    @property
    def query_rotation(self) -> tuple[torch.Tensor, torch.Tensor]:
        total = sum(self._chunks)
        return self.rotation(total - self._chunks[-1], total)

    def observe(self, layer: int, queries: torch.Tensor) -> None:
        raise AssertionError("not asked for")

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.writes += 1
        self._keys[layer][-1], self._values[layer][-1] = keys, values
        rotary: Rotary = self._model.rotary
        everything = torch.cat(self._keys[layer], 1)
        return rotary.rotate(everything, *self.rotation(0, sum(self._chunks))), torch.cat(self._values[layer], 1)


def blockwise(model: CausalWanTransformer, inputs: Inputs, chunks: tuple[int, ...]) -> torch.Tensor:
    """Run chunk after chunk over a growing view, each with a noisier pass first, as in denoising."""
    view = GrowingView(model, model.grid(*inputs.latents.shape[3:]))
    text, answers, start = inputs.text(model), [], 0
    for frames in chunks:
        part = slice(start, start + frames)
        latents, timesteps = inputs.latents[:, :, part], inputs.timesteps[:, part]
        view.begin(frames)
        model(latents + 1, (timesteps + 300).clamp(max=1000), text, view)
        answers.append(model(latents, timesteps, text, view))
        start += frames
    return torch.cat(answers, 2)


def over_the_cache(model: CausalWanTransformer, inputs: Inputs, chunk_frames: int) -> torch.Tensor:
    """As `blockwise`, over a cache of cache/kv/cache.py that keeps everything, with a row per batch entry."""
    frames, height, width = inputs.latents.shape[2:]
    grid, rows = model.grid(height, width), range(inputs.latents.shape[0])
    shape = KVShape(layers=model.layers, heads=model.heads, head_dim=model.head_dim, grid=grid, cache_rows=len(rows))
    policy = make_policy("full", grid=grid, chunk_frames=chunk_frames, max_frames=frames)
    cache, text, answers = KVCache(shape, policy, rotary=model.rotary), inputs.text(model), []
    for start in range(0, frames, chunk_frames):
        part = slice(start, start + chunk_frames)
        latents, timesteps = inputs.latents[:, :, part], inputs.timesteps[:, part]
        for row in rows:
            cache.begin(row, chunk_frames)
        model(latents + 1, (timesteps + 300).clamp(max=1000), text, cache.view(rows))
        answers.append(model(latents, timesteps, text, cache.view(rows)))
    return torch.cat(answers, 2)


def one_forward(model: CausalWanTransformer, inputs: Inputs, chunk_frames: int) -> torch.Tensor:
    """Run all frames in one pass, with the mask of chunks of `chunk_frames`."""
    frames, height, width = inputs.latents.shape[2:]
    rows, columns = model.grid(height, width)
    allowed = block_causal(frames, chunk_frames)
    return inputs.ours(model, mask=PLAIN.frame_mask(allowed, rows * columns))
