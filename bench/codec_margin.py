"""Measures how far a codec's window is from the full call, by the margin around it: after DEMON's windowed decode.

`python -m bench.codec_margin --json`: for each margin in latents, the largest and the root mean square error over
windows of 8 × 8 latents in the middle of pictures: of decoded pixels, in levels of 255, and of latents, whose error is
also decoded. The exact margin is where both are 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch

from bench.command import bench_parser, print_runs
from pipelines.image.codec_tiles import codec_fields
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.loading.networks import TinyImageCodec

_WINDOW, _SIDE = 8, 56
_LEVELS = 127.5


def pictures(codec: TinyImageCodec, count: int, seed: int) -> torch.Tensor:
    """Decoded smooth random latents: pictures as the decoder makes them. [count, 3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, codec.latent_channels, _SIDE // 4, _SIDE // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(_SIDE, _SIDE), mode="bicubic")
    return codec.decode(smooth + 0.3 * torch.randn(smooth.shape, generator=generator))


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Pictures, their latents and the decoded latents, of full calls."""

    images: torch.Tensor
    latents: torch.Tensor
    decoded: torch.Tensor


def measure(codec: TinyImageCodec, full: Full, margin: int) -> dict[str, object]:
    """Compare one window in the middle with the full call, for each picture."""
    latents = full.latents
    start, factor = (_SIDE - _WINDOW) // 2, codec.factor
    crop = slice(start - margin, start + _WINDOW + margin)
    pixel_crop = slice(crop.start * factor, crop.stop * factor)
    inner, window = slice(margin, margin + _WINDOW), slice(start, start + _WINDOW)
    pixels, pixel_window = (slice(s.start * factor, s.stop * factor) for s in (inner, window))
    part = codec.decode(latents[..., crop, crop])[..., pixels, pixels]
    decoding = _LEVELS * (part - full.decoded[..., pixel_window, pixel_window])
    encoded = latents.clone()
    encoded[..., window, window] = codec.encode(full.images[..., pixel_crop, pixel_crop])[..., inner, inner]
    encoding = _LEVELS * (codec.decode(encoded) - full.decoded)
    errors = {"decode": decoding, "encode": encoding, "latents": encoded - latents}
    figures = {f"{name}_max": float(error.abs().max()) for name, error in errors.items()}
    rms = {f"{name}_rms": float(error.square().mean().sqrt()) for name, error in errors.items() if name != "latents"}
    return {"margin": margin, **{name: round(value, 5) for name, value in (figures | rms).items()}}


def main() -> int:
    parser = bench_parser("codec_margin", __doc__)
    parser.add_argument("--model", default="mini-image")
    parser.add_argument("--pictures", type=int, default=4)
    options = parser.parse_args()
    model = load_image_model(options.model, LoadOptions(device="cpu", dtype="float32"))
    codec = model.runtime.codec
    assert isinstance(codec, TinyImageCodec)
    fields = codec_fields(codec.autoencoder)
    exact = max(fields.encoder.margin_cells, fields.decoder.margin_cells)
    images = pictures(codec, options.pictures, 0)
    latents = codec.encode(images)
    full = Full(images=images, latents=latents, decoded=codec.decode(latents))
    runs = [measure(codec, full, margin) for margin in range(exact + 1)]
    figures: dict[str, object] = {"bench": "codec_margin", "model": model.name, "pictures": len(images)}
    for name, field in (("encode", fields.encoder), ("decode", fields.decoder)):
        figures[f"{name}_exact"] = field.margin_cells
        within = [margin for margin, run in enumerate(runs) if np.float64(str(run[f"{name}_max"])) <= 0.5]
        figures[f"{name}_half_level"] = min(within)
    print_runs({**figures, "runs": runs}, one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
