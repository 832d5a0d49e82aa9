"""Owns the pre-training of the text encoder: every token's state learns what the whole caption says.

A denoiser that trains for minutes initially sees its text as a mean over tokens (untrained attention weighs them
equally), in which a subject is one word of many. So the encoder is first trained, on captions only, to predict subject,
place, light, style and motion from each of its states by linear maps, which are then dropped. Independent of pictures
and the denoiser.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from train.budget import TimeBudget
from train.clips.captions import clip_caption
from train.clips.motions import MOTIONS, sample_clip_specs
from train.crew import CrewClock
from train.session import TrainingSession, adamw, set_rate, warm_cosine
from train.vocabulary_world import LIGHTS, PLACES, STYLES

from .causal import TrainingNetworks, make_networks
from .networks import TEXT_WIDTH
from .tokenizer import text_mask, token_ids

STAGE = "words"
PEAK_RATE = 2e-3
BATCH = 256
_SALT = 91


class Reader(nn.Module):
    """Linear maps from a state of the text encoder to the caption's components, in the order of ClipSpec."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        sizes = (subjects + 1, len(PLACES) + 1, len(LIGHTS), len(STYLES), len(MOTIONS))
        self.maps = nn.ModuleList(nn.Linear(TEXT_WIDTH, size) for size in sizes)

    def forward(self, states: Tensor) -> list[Tensor]:
        """[..., 128] -> five tensors of logits [..., classes]; class 0 of subject and place is none."""
        return [linear(states) for linear in self.maps]


def captions_of(
    session: TrainingSession, tokenizer: Any, count: int, subjects: int, salt: int
) -> tuple[Tensor, Tensor]:
    """(ids int64 [count, 32], truth int64 [count, 5]) of random clips, without held-out combinations."""
    cpu = torch.device("cpu")
    spec = sample_clip_specs(count, session.generator(salt, cpu), cpu, False, subjects=subjects)
    rows = torch.stack(tuple(spec), 1)
    rng = random.Random(salt + session.crew.rank)
    texts = [clip_caption(subject, place, light, style, motion, rng)
             for subject, place, light, style, motion in rows.tolist()]  # fmt: skip
    ids = token_ids(tokenizer, texts)
    truth = rows + torch.tensor([1, 1, 0, 0, 0])
    return ids.to(session.device), truth.to(session.device)


def train_words(session: TrainingSession, tokenizer: Any, subjects: int, seconds: float) -> TrainingNetworks:
    """Train for seconds; save words.safetensors; log the accuracy per token on new captions."""
    count = session.scale.video_captions
    ids, truth = captions_of(session, tokenizer, count, subjects, _SALT)
    networks = make_networks(session.device, vocabulary=len(tokenizer), seed=session.seed)
    session.restore(STAGE, text=networks.text)
    reader = Reader(subjects).to(session.device)
    parameters = [*networks.text.parameters(), *reader.parameters()]
    optimiser = adamw(parameters, 0.0, session.device)
    budget, running = CrewClock(session.crew, session.device, TimeBudget(seconds)), True
    while running:
        set_rate(optimiser, session.rate * PEAK_RATE * warm_cosine(budget.steps, budget.fraction()))
        rows = torch.randint(ids.shape[0], (BATCH,), device=session.device)
        loss = _loss(networks, reader, ids[rows], truth[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in parameters if p.grad is not None]
        session.crew.average(gradients)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        running = budget.tick()
        if budget.steps % (4 * session.scale.log_every) == 0 or not running:
            session.log(STAGE, step=float(budget.steps), loss=float(loss.detach()), rate=budget.rate)
    session.save(STAGE, text=networks.text)
    session.log(STAGE, **shares_right(networks, reader, *captions_of(session, tokenizer, 512, subjects, _SALT + 1)))
    return networks


def _loss(networks: TrainingNetworks, reader: Reader, ids: Tensor, truth: Tensor) -> Tensor:
    """Cross entropies of all five, the mean over the tokens of the captions."""
    real_tokens = text_mask(ids)
    states = networks.encode(ids)[real_tokens]
    target = truth[:, None].expand(-1, ids.shape[1], -1)[real_tokens]
    parts = [functional.cross_entropy(logits, target[:, i]) for i, logits in enumerate(reader(states))]
    return torch.stack(parts).sum()


@torch.no_grad()
def shares_right(networks: TrainingNetworks, reader: Reader, ids: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy of each of the five over tokens."""
    real_tokens = text_mask(ids)
    target = truth[:, None].expand(-1, ids.shape[1], -1)[real_tokens]
    predictions = reader(networks.encode(ids)[real_tokens])
    names = ("subject", "place", "light", "style", "motion")
    return {name: float((logits.argmax(-1) == target[:, i]).float().mean())
            for i, (name, logits) in enumerate(zip(names, predictions, strict=True))}  # fmt: skip
