"""Measures the bundled model: autoencoder PSNR, held-out captions, photographs at strength 0.5.

Uses stock parts only: diffusers' UNet, autoencoder and LCMScheduler, transformers' text encoder, no guidance.
``python -m bench.mini_image --json`` prints one JSON line. It needs train/data/pack.npz (``python -m train.collect``).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from bench.command import bench_parser, print_listing
from train.autoencoder import decode_latents, encode_pictures, psnr_db, test_pictures
from train.bank import SourceMaterial, make_source, random_scenes
from train.classifier import Classifier, labels, load_classifier, predict
from train.evaluate import (
    edge_correlation,
    held_out_captions,
    recognition,
    score_captions,
    score_photos,
    sheet,
    square_photos,
)
from train.export import folder_mib
from train.pack import load_pack
from train.styles import apply_styles
from train.vocabulary_world import STYLES

MODEL = Path("assets/models/mini-image")
CLASSIFIER = Path("assets/models/mini-classifier")
PHOTOS = Path("assets/samples/photos")
PACK = Path("train/data/pack.npz")
SHEET_COLUMNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The bundled model's stock parts on one device in one dtype."""

    vae: AutoencoderTiny
    unet: UNet2DConditionModel
    text: CLIPTextModel
    tokenizer: Any
    scheduler: LCMScheduler
    device: torch.device
    dtype: torch.dtype

    @property
    def scale(self) -> float:
        """The scaling factor of the autoencoder's latents."""
        return float(self.vae.config.scaling_factor)

    def states(self, captions: list[str]) -> Tensor:
        """Text states [B, 32, 128]."""
        encoded = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        states: Tensor = self.text(encoded["input_ids"].to(self.device))[0]
        return states.to(self.dtype)

    def sample(self, latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        """Pictures in 0..1 after the scheduler's timesteps from latents at the first of them."""
        states = self.states(captions)
        for t in self.scheduler.timesteps:
            x = latents.to(self.dtype, memory_format=torch.channels_last)
            v = self.unet(x, t, encoder_hidden_states=states).sample
            latents = self.scheduler.step(v.float(), t, latents, generator=generator).prev_sample
        return decode_latents(self.vae, (latents / self.scale).to(self.dtype)).float()

    def generate(self, captions: list[str], steps: int) -> Tensor:
        """Text to image, [B, 3, 192, 192] in 0..1."""
        generator = torch.Generator(self.device).manual_seed(sum(map(len, captions)))
        self.scheduler.set_timesteps(steps, device=self.device, original_inference_steps=50)
        noise = torch.randn(len(captions), 4, 48, 48, generator=generator, device=self.device)
        return self.sample(noise, captions, generator)

    def translate(self, pictures: Tensor, captions: list[str], steps: int, strength: float = 0.5) -> Tensor:
        """Image to image at a strength, [B, 3, 192, 192] in 0..1."""
        generator = torch.Generator(self.device).manual_seed(7)
        self.scheduler.set_timesteps(steps, device=self.device, original_inference_steps=50, strength=strength)
        start = encode_pictures(self.vae, pictures.to(self.device, self.dtype)).float() * self.scale
        noise = torch.randn(start.shape, generator=generator, device=self.device)
        first = self.scheduler.timesteps[:1].expand(start.shape[0])
        return self.sample(self.scheduler.add_noise(start, noise, first), captions, generator)


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """The stock parts of a Stable Diffusion folder."""
    vae = AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=dtype)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    return Model(
        vae=vae.to(device=device, memory_format=torch.channels_last).eval(),
        unet=unet.to(device=device, memory_format=torch.channels_last).eval(),
        text=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=LCMScheduler.from_pretrained(folder / "scheduler"),
        device=device,
        dtype=dtype,
    )


def measure_autoencoder(model: Model, source: SourceMaterial, scenes: int) -> dict[str, float]:
    """PSNR in dB on the three test photographs and on fresh styled scenes."""
    generator = torch.Generator(model.device).manual_seed(401)
    styled = random_scenes(source, scenes, generator, held_out=None)[2]
    tests = test_pictures().to(model.device)
    scores = [psnr_db(reconstruct(model, p), p) for p in (tests, styled)]
    named = dict(zip(("astronaut", "chelsea", "coffee"), scores[0].tolist(), strict=True))
    return named | {"photos_mean": float(scores[0].mean()), "world_mean": float(scores[1].mean())}


def reconstruct(model: Model, pictures: Tensor) -> Tensor:
    """Decoded latents of pictures in 0..1."""
    return decode_latents(model.vae, encode_pictures(model.vae, pictures.to(model.dtype))).float()


def measure_judge(model: Model, judge: Classifier, source: SourceMaterial, scenes: int) -> dict[str, dict[str, float]]:
    """Recognition on fresh scenes of all combinations and on their reconstructions."""
    generator = torch.Generator(model.device).manual_seed(402)
    classes: list[list[Tensor]] = [[], [], []]
    for _ in range(0, scenes, 64):
        spec, _, styled, _ = random_scenes(source, 64, generator, held_out=None)
        answers = (labels(spec), predict(judge, styled), predict(judge, reconstruct(model, styled)))
        for part, answer in zip(classes, answers, strict=True):
            part.append(answer)
    truth, fresh, decoded = (torch.cat(part) for part in classes)
    return {"fresh": recognition(truth, fresh), "reconstructed": recognition(truth, decoded)}


def read_photos(folder: Path, count: int) -> Tensor:
    """The first count pictures of folder by name, centre squares [N, 3, 192, 192] in 0..1."""
    files = sorted(f for f in folder.iterdir() if f.suffix in (".jpg", ".png"))[:count]
    if len(files) < count:
        raise FileNotFoundError(f"{folder} holds {len(files)} of {count} pictures; run python -m train.collect")
    read = [cv2.imread(str(file), cv2.IMREAD_COLOR) for file in files]
    return square_photos([np.ascontiguousarray(p[..., ::-1]) for p in read if p is not None], 192)


def true_style_limits(judge: Classifier, photos: Tensor) -> dict[str, float]:
    """Edge correlation and recognised style of the true styles of photos: the scores of a perfect model."""
    edges, hits = [], []
    for style in range(1, len(STYLES)):
        styled = apply_styles(photos, torch.full((photos.shape[0],), style))
        edges.append(edge_correlation(styled, photos))
        hits.append(predict(judge, styled)[:, 2] == style)
    return {"edge_correlation": float(torch.cat(edges).mean()), "style": float(torch.cat(hits).double().mean())}


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of the bundled model as one dictionary."""
    began = time.perf_counter()
    torch.set_num_threads(options.threads)
    random.seed(0)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model, judge = load_model(options.model, device, dtype), load_classifier(options.classifier).to(device)
    pack = load_pack(options.pack)
    source = make_source(pack.sprites, [], device)
    spec, captions = held_out_captions(options.captions, pack.sprites.shape[0])
    photos = read_photos(options.photos, options.photo_count)
    result: dict[str, Any] = {
        "bench": "mini_image", "device": device.type, "threads": options.threads, "dtype": options.dtype,
        "torch": torch.__version__, "model_mib": round(folder_mib(options.model), 2),
        "psnr_db": measure_autoencoder(model, source, 64),
        "judge": measure_judge(model, judge, source, options.scenes),
        "captions": {"count": len(captions)},
        "photographs": {"count": photos.shape[0], "true_styles": true_style_limits(judge.cpu(), photos)},
    }  # fmt: skip
    judge.to(device)
    rows, pictures = [], torch.empty(0)
    for steps in (1, 2, 4):
        scores, first = score_captions(judge, model.generate, spec, captions, steps, 32)
        result["captions"][f"steps_{steps}"] = scores
        rows.append(first[:SHEET_COLUMNS])
    for steps in (4, 1, 2):
        scores, pictures = score_photos(judge, model.translate, photos, steps, 30)
        result["photographs"][f"steps_{steps}"] = scores
    if options.sheets is not None:
        options.sheets.mkdir(parents=True, exist_ok=True)
        sheet(rows, options.sheets / "sheet-captions.jpg", quality=80)
        (options.sheets / "sheet-captions.txt").write_text("\n".join(captions[:SHEET_COLUMNS]) + "\n", encoding="utf-8")
        sheet(
            [photos[::7][:SHEET_COLUMNS], *pictures[:, ::7][:, :SHEET_COLUMNS]],
            options.sheets / "sheet-photos.jpg",
            quality=80,
        )
    result["seconds"] = time.perf_counter() - began
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = bench_parser("mini_image", __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--photo-count", type=int, default=60)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--pack", type=Path, default=PACK)
    parser.add_argument("--sheets", type=Path, help="folder to write sheets of samples to")
    options = parser.parse_args(arguments)
    print_listing(measure(options), one_line=options.json)


if __name__ == "__main__":
    main()
