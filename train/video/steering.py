"""Owns the training of the action embedder only: a student follows commands better, while streams without actions stay
bit-identical.

Regression to real chunks at the few-step levels, on clips with actions. The embedder has no biases, so no action adds
exactly 0: measurements without actions remain valid. Independent of pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from train.session import TrainingSession, adamw, warm_cosine

from .bank import ClipBank, draw_windows
from .causal import CHUNK, GRID, WINDOW, TrainingNetworks, few_step_levels, make_networks
from .checkpoints import require_parts, save_parts
from .distill import STUDENT, clip_loss
from .export import ACTIONS
from .forcing import ForcedPass, training_execution
from .loop import Course, train_for
from .teacher import STAGE as TEACHER
from .teacher import as_batch

STAGE = "actions"
RATE = 1e-3
LEVELS = 3
"""Number of few-step levels, from the noisiest: below them the noised picture itself shows the displacement."""


def steered(bank: ClipBank) -> ClipBank:
    """The clips that have actions. Raises ValueError if none has."""
    rows = (bank.actions != 0).flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        raise ValueError(f"none of the bank's {bank.clips} clips has actions: make it larger (--bank-share)")
    return replace(
        bank,
        latents=bank.latents[rows],
        ids=bank.ids[rows],
        actions=bank.actions[rows],
        coverage=bank.coverage[rows],
        spec=bank.spec[rows],
    )


def train_actions(session: TrainingSession, bank: ClipBank, vocabulary: int, seconds: float) -> TrainingNetworks:
    """Train from a student; saved as student, with only the action embedder changed."""
    networks = make_networks(session.device, vocabulary=vocabulary, seed=session.seed)
    require_parts(session, TEACHER, text=networks.text)
    require_parts(session, STUDENT, transformer=networks.transformer)
    frozen = {name: values.clone() for name, values in networks.transformer.state_dict().items()}
    for module in networks.modules:
        module.requires_grad_(False).to(session.dtype)
    embedder = networks.transformer.action_embedder
    assert embedder is not None, "make_networks creates one"
    bank, embedder = steered(bank), embedder.requires_grad_(True)
    levels, frames = few_step_levels(session.device)[:LEVELS], session.scale.video_window
    execution = training_execution(compile_blocks=session.scale.compile)
    forced = ForcedPass(networks.transformer, GRID, frames=frames, chunk=CHUNK, window=WINDOW, execution=execution)

    def loss() -> Tensor:
        windows = draw_windows(bank, session.scale.video_batch, frames)
        with torch.no_grad():
            states = networks.encode(windows.ids)
        return clip_loss(forced, as_batch(windows, CHUNK), states, levels, session.dtype)

    course = Course(
        stage=STAGE, optimiser=lambda full: adamw(full, 0.0, session.device), peak=RATE, factor=warm_cosine, decay=0.99
    )
    train_for(session, course, [embedder], loss, seconds)
    frozen |= {f"{ACTIONS}{name}": values for name, values in embedder.state_dict().items()}
    networks.transformer.float().load_state_dict(frozen)
    save_parts(session, STUDENT, transformer=networks.transformer)
    return networks
