"""The kernels of the Wan decoder beside plain convolutions: each case gives their relative difference.

On CUDA as they are; `python -m tests.fakes.wan_kernels` runs them in Triton's interpreter, on any processor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

Draw = Callable[..., torch.Tensor]
"""Sizes -> normal numbers in the dtype and on the device of the case."""


def difference(given: torch.Tensor, expected: torch.Tensor) -> float:
    assert given.shape == expected.shape, (given.shape, expected.shape)
    return float((given.float() - expected.float()).norm() / expected.float().norm())


def normed(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return F.silu(F.normalize(x.float(), dim=-1) * x.shape[-1] ** 0.5 * gamma.float())


def convolved(frames: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """frames [B, 2 + t, h, w, C] -> [B, t, h, w, N] in float32."""
    y = F.conv3d(frames.float().permute(0, 4, 1, 2, 3), weight.float(), bias.float(), padding=(0, 1, 1))
    return y.permute(0, 2, 3, 4, 1)


def pairs(draw: Draw, *, batch: int, counts: tuple[int, ...], outputs: int, shortcut: bool) -> float:
    """Norm and convolution of successive chunks of so many frames, which end in the middle of tiles."""
    from pipelines.video.codecs.wan_winograd import PairTile, norm_pairs, pair_conv, pair_weights

    channels, height, width = 32, 9, 21
    tile = PairTile(64, 16, 64, 32, 4, 2) if outputs % 192 else PairTile(64, 32, 128, 64, 8, 2)
    gamma, weight, bias = draw(channels), draw(outputs, channels, 3, 3, 3, spread=27 * channels), draw(outputs)
    past = draw(batch, 2, height, width, channels)
    before, packed, worst = past.float(), pair_weights(weight), 0.0
    for count in counts:
        x = draw(batch, count, height, width, channels)
        extra = draw(batch, count, height, width, outputs) if shortcut else None
        frames = torch.cat((before, normed(x, gamma)), 1)
        expected = convolved(frames, weight, bias)
        given = pair_conv(norm_pairs(x, gamma, past), packed, bias, extra, count, tile)
        worst = max(worst, difference(given, expected if extra is None else expected + extra.float()))
        before = frames[:, -2:]
        worst = max(worst, difference(past, before))
    return worst


def narrow(draw: Draw) -> float:
    from pipelines.video.codecs.wan_triton import narrow_conv, narrow_weights

    frames, weight, bias = draw(2, 5, 9, 21, 32), draw(3, 32, 3, 3, 3, spread=27 * 32), draw(3)
    return difference(narrow_conv(frames, narrow_weights(weight), bias), convolved(frames, weight, bias))


def upsampled(draw: Draw, *, outputs: int) -> float:
    from pipelines.video.codecs.wan_triton import Tile, phase_weights, upsampled_conv

    x, weight, bias = draw(2, 3, 9, 21, 32), draw(outputs, 32, 3, 3, spread=9 * 32), draw(outputs)
    tile = Tile(4, 16, 16, 64, 32, 4, 2) if outputs == 96 else Tile(4, 16, 32, 128, 64, 8, 2)
    images = F.interpolate(x.float().flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest-exact")
    expected = F.conv2d(images, weight.float(), bias.float(), padding=1).permute(0, 2, 3, 1)
    return difference(upsampled_conv(x, phase_weights(weight), bias, tile).flatten(0, 1), expected)


def added(draw: Draw, *, norm: bool) -> float:
    from pipelines.video.codecs.wan_triton import add_norm_silu

    y, bias, shortcut, gamma = draw(2, 3, 5, 7, 48), draw(48), draw(2, 3, 5, 7, 48), draw(48)
    expected = y.float() + bias.float() + shortcut.float()
    if not norm:
        return difference(add_norm_silu(y, bias, shortcut, None, None, keep=True), expected)
    out = torch.zeros(2, 5, 5, 7, 48, dtype=y.dtype, device=y.device)
    add_norm_silu(y, bias, shortcut, gamma, out, keep=False)
    assert not out[:, :2].any()
    return difference(out[:, 2:], normed(expected, gamma))


def decoded(draw: Draw) -> float:
    """A whole decoder over three rows, then over some of them in another order."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from pipelines.video.codecs.wan import WanCodec, WanCodecOptions
    from pipelines.video.codecs.wan_fused import FusedResidualBlock

    config = {"base_dim": 96, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True], "z_dim": 4}
    vae = AutoencoderKLWan(**config, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval().requires_grad_(False)
    for parameter in vae.parameters():
        if parameter.dim() > 1:
            parameter.copy_(draw(*parameter.shape, spread=parameter[0].numel()))
    device, dtype = draw(1).device, draw(1).dtype
    made = WanCodec(vae.to(device, dtype)), WanCodec(vae, WanCodecOptions(fused=True))
    plain, fused = (codec.decoder(height=6, width=10, rows=3) for codec in made)
    assert any(isinstance(layer, FusedResidualBlock) for layer in fused._program._layers)
    worst = 0.0
    for rows, count in ((None, 2), ([2, 0], 1), ([1], 2), (None, 1)):
        latents = draw(len(rows) if rows else 3, 4, count, 3, 5)
        worst = max(worst, difference(fused.decode(latents, rows), plain.decode(latents, rows)))
    return worst


CASES: dict[str, Callable[[Draw], float]] = {
    "pairs, even counts": lambda draw: pairs(draw, batch=1, counts=(4, 2), outputs=96, shortcut=False),
    "pairs, odd counts": lambda draw: pairs(draw, batch=2, counts=(1, 3, 2), outputs=96, shortcut=True),
    "pairs, two blocks of outputs": lambda draw: pairs(draw, batch=1, counts=(3, 1, 1), outputs=384, shortcut=True),
    "narrow": narrow,
    "upsampled": lambda draw: upsampled(draw, outputs=96),
    "upsampled, wider": lambda draw: upsampled(draw, outputs=192),
    "decoded": decoded,
    "added": lambda draw: added(draw, norm=False),
    "added and normed": lambda draw: added(draw, norm=True),
}


def error_of(name: str, device: torch.device, dtype: torch.dtype) -> float:
    """Run a case with numbers that depend on its name alone."""
    generator = torch.Generator().manual_seed(sorted(CASES).index(name))

    def draw(*size: int, spread: int = 1) -> torch.Tensor:
        return (torch.randn(size, generator=generator) / spread**0.5).to(device, dtype)

    return CASES[name](draw)


def main() -> None:
    """Write the names and errors of all cases in float32, interpreted."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter  # type: ignore[import-not-found, unused-ignore]

    patch = interpreter._patch_lang_tensor

    def with_index(tensor: type, scope: object) -> None:
        patch(tensor, scope)  # its own index converts arrays of one number, which NumPy refuses from 2.4 on
        scope.set_attr(tensor, "__index__", lambda value: value.handle.data.item())  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = with_index
    for name in CASES:
        sys.stdout.write(f"{name}: {error_of(name, torch.device('cpu'), torch.float32)}\n")


if __name__ == "__main__":
    main()
