"""Owns the evaluation at the end of a training run: every figure of the model's card and the sample sheets.

Applies the metrics of train.evaluate to a run's networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from .autoencoder import decode_latents, encode_pictures, measure_autoencoder
from .bank import SourceMaterial, random_scenes
from .classifier import Classifier, labels, predict
from .distill import Players, make_players
from .evaluate import held_out_captions, recognition, score_captions, score_photos, sheet
from .networks import LATENT_CHANNELS, LATENT_SCALE, LATENT_SIZE
from .sampling import Denoise, ddim_chain, lcm_chain, lcm_steps
from .session import TrainingSession
from .styles import apply_styles
from .tokenizer import token_ids
from .vocabulary_world import STYLES
from .world import SceneSpec

STAGE = "scores"
TEACHER_STEPS = 20


def score_everything(
    session: TrainingSession,
    source: SourceMaterial,
    vae: AutoencoderTiny,
    judge: Classifier,
    tokenizer: Any,
    photos: Tensor,
) -> None:
    """Log scores of the judge, the autoencoder, the teacher, the student at 1, 2, 4 steps; write sheets."""
    with torch.no_grad():
        score_judge(session, source, vae, judge)
        session.log(STAGE, event="autoencoder", **measure_autoencoder(session, vae, source))
        limits = style_limits(judge, photos[:60].to(session.device))
        session.log(STAGE, event="styles_of_photographs", **limits)
        players, _ = make_players(session, tokenizer)
        score_players(session, source, vae, judge, players, tokenizer, photos)


def score_judge(session: TrainingSession, source: SourceMaterial, vae: AutoencoderTiny, judge: Classifier) -> None:
    """Recognition on new scenes (all combinations) and on their reconstructions."""
    generator, parts = session.generator(51), []
    for _ in range(max(1, session.scale.eval_scenes // session.scale.chunk * 4)):
        spec, _, styled, _ = random_scenes(source, session.scale.chunk, generator, held_out=None)
        decoded = decode_latents(vae, encode_pictures(vae, styled))
        parts.append((labels(spec), predict(judge, styled), predict(judge, decoded)))
    truth, fresh, decoded_found = (torch.cat(p) for p in zip(*parts, strict=True))
    session.log(STAGE, event="judge_fresh", **recognition(truth, fresh))
    session.log(STAGE, event="judge_reconstructed", **recognition(truth, decoded_found))
    sheet([styled[:12], decoded[:12]], session.out / "sheet-autoencoder.jpg")


def style_limits(judge: Classifier, photos: Tensor) -> dict[str, float]:
    """Recognition and edge correlation of the true styles of photographs: the upper bound for the model."""
    return score_photos(judge, _true_styles, photos, 1, 64)[0]


def _true_styles(pictures: Tensor, texts: list[str], steps: int) -> Tensor:
    names = [style.labels[0] for style in STYLES]
    index = next(i for i, name in enumerate(names) if i and texts[0].endswith(name))
    return apply_styles(pictures, torch.full((pictures.shape[0],), index, device=pictures.device))


def score_players(
    session: TrainingSession,
    source: SourceMaterial,
    vae: AutoencoderTiny,
    judge: Classifier,
    players: Players,
    tokenizer: Any,
    photos: Tensor,
) -> None:
    """Recognition of teacher and student on held-out captions, of the student on photographs; sample sheets."""
    device, chunk = session.device, session.scale.batch
    players.student.to(dtype=session.dtype)
    count = session.scale.eval_scenes
    spec, captions = held_out_captions(count, source.sprites.shape[0])

    def pictures(texts: list[str], run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        generator = session.generator(61)
        padded = texts + [""] * (chunk - len(texts))
        text = players.states(torch.tensor(token_ids(tokenizer, padded), device=device))
        noise = torch.randn(chunk, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator, device=device)
        return decode_latents(vae, run(text, noise)[: len(texts)] / LATENT_SCALE)

    def student(text: Tensor) -> Denoise:
        return players.denoiser(players.student, text)

    def generate(texts: list[str], steps: int) -> Tensor:
        generator = session.generator(62)
        return pictures(
            texts, lambda c, n: lcm_chain(players.schedule, student(c), n, lcm_steps(steps), generator, None)
        )

    def teach(texts: list[str], steps: int) -> Tensor:
        return pictures(texts, lambda c, n: ddim_chain(players.schedule, players.guided(c), n, steps))

    def translate(inputs: Tensor, texts: list[str], steps: int) -> Tensor:
        generator = session.generator(63)
        start = torch.zeros(chunk, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, device=device)
        start[: len(texts)] = LATENT_SCALE * encode_pictures(vae, inputs.to(device))
        grid = lcm_steps(steps, 0.5)
        return pictures(texts, lambda c, n: lcm_chain(players.schedule, student(c), n, grid, generator, start))

    half = SceneSpec(*(field[: count // 2] for field in spec))
    result, first = score_captions(judge, teach, half, captions[: count // 2], TEACHER_STEPS, chunk)
    session.log(STAGE, event="teacher", **result)
    rows = [first[:12]]
    for steps in (1, 2, 4):
        result, first = score_captions(judge, generate, spec, captions, steps, chunk)
        session.log(STAGE, event=f"student_{steps}", **result)
        rows.append(first[:12])
    sheet(rows, session.out / "sheet-captions.jpg")
    (session.out / "sheet-captions.txt").write_text("\n".join(captions[:12]) + "\n", encoding="utf-8")
    for steps in (2, 4):
        result, kept = score_photos(judge, translate, photos[:60], steps, chunk)
        session.log(STAGE, event=f"photos_{steps}", **result)
    sheet([photos[:10], *(style[:10] for style in kept)], session.out / "sheet-photos.jpg")
