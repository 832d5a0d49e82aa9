"""Owns the adapter that makes a `VideoDenoiser` of a compiled pass: it hands the past over and stores what comes back.

Independent of what compiled the pass and of cache policies.
"""

from __future__ import annotations

from collections import Counter

import torch

from cache.kv.view import KVView
from pipelines.core.parts import Part, PartCall

from .model import VideoCondition, VideoDenoiser
from .parts import TIMED_INPUTS, timed_pass_part
from .wan.text_cache import KeysValues
from .wan.transformer import CausalWanTransformer


class PassInputs:
    """Gathers the inputs of one row's pass, as `TimedPassPart` orders them, into memory that is allocated here.

    transformer: for its sizes. past_tokens: of a pass; text_tokens: of a prompt.
    """

    def __init__(self, transformer: CausalWanTransformer, *, past_tokens: int, text_tokens: int) -> None:
        self._transformer, self._layers = transformer, transformer.layers
        self.past_tokens = past_tokens

        def memory(tokens: int) -> torch.Tensor:
            size = (transformer.layers, 1, tokens, transformer.heads, transformer.head_dim)
            return torch.zeros(size, dtype=transformer.dtype, device=transformer.device)

        with torch.inference_mode(False):
            self._text, self._past = (
                (memory(text_tokens), memory(text_tokens)),
                (memory(past_tokens), memory(past_tokens)),
            )

    def refusal(self, condition: VideoCondition, kv: KVView) -> str:
        """Return why these inputs cannot be gathered, as a clause; "" if they can."""
        if not kv.plain:
            return "the cache policy changes the past in this pass"
        if kv.past_tokens != self.past_tokens:
            return f"the pass does not have {self.past_tokens} past tokens, as while the window fills"
        if condition.text.exchange(0, _not_stored)[0].dim() != 4:
            return "each latent frame has its own prompt"
        unknown = sorted(condition.inputs.keys() - {"actions"})
        return f"the pass has the inputs {', '.join(unknown)}" if unknown else ""

    def gather(
        self, row: int, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> dict[str, torch.Tensor]:
        """Return the inputs of one row of a batch, by name; text and past are valid until the next call."""
        one = slice(row, row + 1)
        for layer in range(self._layers):
            stored = condition.text.exchange(layer, _not_stored)
            for target, source in zip(self._text, stored, strict=True):
                target[layer].copy_(source[one])
        kv.copy_past(row, self._past[0][:, 0], self._past[1][:, 0])
        cos, sin = kv.query_rotation
        net, actions = self._transformer, condition.inputs.get("actions")
        added = net.embed_actions(None if actions is None else actions[one])
        embedding, time = net.condition_embedder.time(timesteps[one], added)
        values = (latents[one], embedding, time, *self._text, *self._past, cos[one], sin[one])
        return dict(zip(TIMED_INPUTS, values, strict=True))


class PartVideoDenoiser:
    """A `VideoDenoiser` that runs compiled passes of one row each, and all others by the plain denoiser.

    call: the compiled form of `part`, which `one_row_part` made. plain: runs the passes that the compiled form does
    not fit: those of another shape (while the window fills, say) and those in which the cache policy changes the past.
    plain_passes: how many those were, by reason.
    """

    def __init__(self, call: PartCall, part: Part, plain: VideoDenoiser, transformer: CausalWanTransformer) -> None:
        self._call, self._plain = call, plain
        self._shapes = {name: tensor.shape for name, tensor in part.inputs.items()}
        self._inputs = PassInputs(
            transformer,
            past_tokens=part.inputs["past_keys"].shape[2],
            text_tokens=part.inputs["text_keys"].shape[2],
        )
        self.plain_passes: Counter[str] = Counter()

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        """See `VideoDenoiser`."""
        reason = self._refusal(latents, condition, kv)
        if reason:
            self.plain_passes[reason] += 1
            return self._plain(latents, timesteps, condition, kv)
        return self._joined([self._row(row, latents, timesteps, condition, kv) for row in range(len(latents))], kv)

    def _refusal(self, latents: torch.Tensor, condition: VideoCondition, kv: KVView) -> str:
        if latents.shape[1:] != self._shapes["latents"][1:]:
            return f"the pass has latents of another shape than {tuple(self._shapes['latents'][1:])}"
        return self._inputs.refusal(condition, kv)

    def _row(
        self, row: int, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> tuple[torch.Tensor, ...]:
        inputs = self._inputs.gather(row, latents, timesteps, condition, kv)
        results = self._call(*(inputs[name] for name in self._shapes))
        return results if len(latents) == 1 else tuple(result.clone() for result in results)

    def _joined(self, rows: list[tuple[torch.Tensor, ...]], kv: KVView) -> torch.Tensor:
        """Store keys and values; return the velocity."""
        velocity, keys, values = (
            rows[0]
            if len(rows) == 1
            else (torch.cat([row[i] for row in rows], axis) for i, axis in enumerate((0, 1, 1)))
        )
        kv.store(keys, values)
        return velocity


def one_row_part(
    transformer: CausalWanTransformer,
    *,
    frames: int,
    past_frames: int,
    latent_size: tuple[int, int],
) -> Part:
    """Return the pass of one row of `frames` latent frames with `past_frames` past ones.

    latent_size: (height, width). Latents are float32, as the engine's.
    """
    rows, columns = transformer.grid(*latent_size)
    tokens, config, device = rows * columns, transformer.config, transformer.device
    heads, dim = transformer.heads, transformer.head_dim

    def keys(count: int) -> torch.Tensor:
        size = (transformer.layers, 1, count, heads, dim)
        return torch.zeros(size, dtype=transformer.dtype, device=device)

    cos, sin = transformer.full_window(frames, (rows, columns)).query_rotation
    size = (1, config.in_channels, frames, *latent_size)
    given = {
        "latents": torch.zeros(size, dtype=torch.float32, device=device),
        "embedding": torch.zeros((1, frames, config.dim), dtype=transformer.dtype, device=device),
        "time": torch.zeros((1, frames, 6, config.dim), dtype=transformer.dtype, device=device),
        "text_keys": keys(config.text_len),
        "text_values": keys(config.text_len),
        "past_keys": keys(past_frames * tokens),
        "past_values": keys(past_frames * tokens),
        "cos": cos[None].float().contiguous(),
        "sin": sin[None].float().contiguous(),
    }
    return timed_pass_part(transformer, given)


def _not_stored(hidden: torch.Tensor) -> KeysValues:
    raise AssertionError("a compiled pass needs text whose keys and values are stored")
