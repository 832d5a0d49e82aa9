"""Owns the training clips of the denoiser: rendered on the device, and photographs in motion among them, as latents.

Independent of losses and of networks except the given encoder. Windows are drawn on the device with index tensors,
without synchronisation, so a draw can be part of a captured training step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES
from train.bank import PHOTO_SUBJECT, SourceMaterial
from train.clips.actions import sample_actions
from train.clips.captions import clip_caption
from train.clips.motions import ClipSpec, sample_clip_specs
from train.clips.render import Clips, render_clips
from train.session import Scale, TrainingSession

from .networks import VIDEO_SIZE_PX
from .photo_clips import photo_caption, styled_views
from .tokenizer import text_mask, token_ids

CAPTIONS_PER_CLIP = 4
PHOTO_SHARE = 0.1
"""Of a bank's clips."""
BEGIN_SHARE, EMPTY_SHARE = 0.25, 0.1
SUBJECT_RADIUS = 0.3
"""Of a subject, in widths of the frame, before the camera zooms."""
TIME_FACTOR = 4
Encode = Callable[[Tensor], Tensor]
"""Clips [n, 3, F, H, W] in 0..1 -> normalised latents [n, 16, L, h, w] float32."""


class Windows(NamedTuple):
    """A batch for the denoiser.

    latents: [n, 16, W, h, w] float32. first: int64 [n], the index of a window's first latent in its clip (before it was
    replaced by a sink); begins: bool [n], whether that is 0 (then it is the latent of a single frame, and its action
    has no effect). ids: int64 [n, 32] and mask: bool [n, 32], for `networks.encode_text`. actions: [n, W, 5] float32
    within MAX_ACTION. coverage: float32 [n, 1, W, h, w] in 0..1, the fraction of each cell that the subject covers.
    spec: int64 [n, 5], as ClipSpec (the caption may still be empty).
    """

    latents: Tensor
    first: Tensor
    begins: Tensor
    ids: Tensor
    mask: Tensor
    actions: Tensor
    coverage: Tensor
    spec: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBank:
    """N clips of L latents on one device.

    latents: float16 [N, 16, L, h, w], normalised, each clip encoded from its frame 0. ids: int16 [N, K, 32], K captions
    each. actions: float16 [N, L, 5]. coverage: uint8 [N, 1, L, h, w], 255 for 1. spec: int64 [N, 5]. empty_ids: int64
    [32], of the caption "".
    """

    latents: Tensor
    ids: Tensor
    actions: Tensor
    coverage: Tensor
    spec: Tensor
    empty_ids: Tensor

    @property
    def clips(self) -> int:
        """N."""
        return self.latents.shape[0]

    @property
    def length(self) -> int:
        """L."""
        return self.latents.shape[2]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        tensors = (self.latents, self.ids, self.actions, self.coverage, self.spec)
        return sum(tensor.nbytes for tensor in tensors)


def draw_windows(
    bank: ClipBank,
    n: int,
    window: int,
    generator: torch.Generator | None = None,
    *,
    begin_share: float = BEGIN_SHARE,
    empty_share: float = EMPTY_SHARE,
    sink: int = 0,
) -> Windows:
    """n random windows of `window` latents, at least begin_share of them from their clip's beginning, each with one of
    its clip's captions, or with "" in empty_share of cases.

    sink: replace this many first latents of a window by its clip's first ones, as in a stream that keeps its beginning.
    generator: None uses the device's default one, which a CUDA graph may replay. Does not synchronise with the device.
    """
    assert 1 <= window <= bank.length, f"a window of {window} latents out of clips of {bank.length}"
    device = bank.latents.device
    u = torch.rand(5, n, device=device, generator=generator)
    clip = _choose(u[0], bank.clips)
    first = _choose(u[1], bank.length - window + 1) * (u[2] >= begin_share)
    caption = _choose(u[3], bank.ids.shape[1])
    times = first[:, None] + torch.arange(window, device=device)
    times[:, :sink] = torch.arange(sink, device=device)
    ids = torch.where((u[4] < empty_share)[:, None], bank.empty_ids, bank.ids[clip, caption].long())
    rows = clip[:, None]
    return Windows(
        latents=bank.latents[rows, :, times].movedim(1, 2).float(),
        first=first,
        begins=first == 0,
        ids=ids,
        mask=text_mask(ids),
        actions=bank.actions[rows, times].float(),
        coverage=bank.coverage[rows, :, times].movedim(1, 2).float() / 255,
        spec=bank.spec[clip],
    )


def _choose(u: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1) -> equally likely integers 0 .. count - 1; rounding cannot reach count."""
    return (u * count).long().clamp(max=count - 1)


def rendered_groups(
    session: TrainingSession,
    sprites: Tensor,
    clips: int,
    latents: int,
    generator: torch.Generator,
    *,
    held_out: bool = False,
    group: int = 0,
) -> Iterator[tuple[ClipSpec, Tensor, Clips]]:
    """Groups of clips of `latents` latents, `clips` in total: (spec, actions [n, L, 5], rendered clips).

    held_out: combinations held out of training, for evaluation. group: clips per group; default: the scale's.
    """
    device, group = session.device, group or session.scale.video_chunk
    for start in range(0, clips, group):
        n = min(group, clips - start)
        spec = sample_clip_specs(n, generator, device, held_out, subjects=sprites.shape[0], emphasised=not held_out)
        actions = sample_actions(n, latents, generator, device)
        yield spec, actions, render_clips(spec, sprites, actions, generator, latents=latents, size_px=VIDEO_SIZE_PX)


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSize:
    """clips of `latents` latents each, or as many as `seconds` allow; group: rendered at once; salt: for the seed."""

    clips: int
    latents: int
    seconds: float
    group: int
    salt: int


def long_clips(scale: Scale) -> BankSize:
    """Size of the bank of long clips."""
    return BankSize(
        clips=scale.video_clips, latents=scale.video_latents, seconds=scale.video_bank_seconds,
        group=scale.video_chunk, salt=41,
    )  # fmt: skip


def openings(scale: Scale, latents: int) -> BankSize:
    """Size of the bank of first chunks: more scenes in the same time."""
    group = max(1, scale.video_chunk * scale.video_latents // latents)
    return BankSize(
        clips=scale.video_openings, latents=latents, seconds=scale.video_bank_seconds / 2, group=group, salt=43
    )


def clip_bank(
    session: TrainingSession, source: SourceMaterial, encode: Encode, tokenizer: Any, size: BankSize
) -> ClipBank:
    """Render and encode clips until size is reached or its time is spent; logs the cost.

    source: on the session's device; may have no photographs. encode: see `codecs.Codecs.encode`.
    """
    generator = session.generator(size.salt)
    rng = random.Random(session.seed)
    began = session.seconds()
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    texts: list[str] = []
    for spec, actions, frames, coverage in _any_clips(session, source, size, generator, began):
        parts.append((encode(frames).half(), actions.half(), coverage, torch.stack(tuple(spec), 1)))
        texts += [_caption(row, rng) for row in parts[-1][3].tolist() for _ in range(CAPTIONS_PER_CLIP)]
    empty = token_ids(tokenizer, [""])[0]
    bank = ClipBank(
        latents=torch.cat([part[0] for part in parts]),
        ids=token_ids(tokenizer, texts).short().view(-1, CAPTIONS_PER_CLIP, len(empty)).to(session.device),
        actions=torch.cat([part[1] for part in parts]),
        coverage=torch.cat([part[2] for part in parts]),
        spec=torch.cat([part[3] for part in parts]),
        empty_ids=empty.to(session.device),
    )
    session.log("bank", clips=float(bank.clips), mib=bank.bytes / 2**20, took=session.seconds() - began)
    return bank


def _any_clips(
    session: TrainingSession, source: SourceMaterial, size: BankSize, generator: torch.Generator, began: float
) -> Iterator[tuple[ClipSpec, Tensor, Tensor, Tensor]]:
    """Groups of photographs in motion, then of scenes, until the time is spent: (spec, actions, frames, coverage)."""
    photos = int(PHOTO_SHARE * size.clips) if source.photos else 0
    cells = VIDEO_SIZE_PX // 8
    for spec, frames in styled_views(source, photos, size.latents, generator, group=size.group):
        n = frames.shape[0]
        still = torch.zeros(n, size.latents, len(ACTION_NAMES), device=session.device)
        nowhere = torch.zeros(n, 1, size.latents, cells, cells, dtype=torch.uint8, device=session.device)
        yield spec, still, frames, nowhere
        if session.seconds() - began > PHOTO_SHARE * size.seconds:
            break
    groups = rendered_groups(session, source.sprites, size.clips - photos, size.latents, generator, group=size.group)
    for spec, actions, clip in groups:
        yield spec, actions, clip.frames, subject_coverage(spec, clip, cells)
        if session.seconds() - began > size.seconds:
            break


def _caption(row: list[int], rng: random.Random) -> str:
    subject, place, light, style, motion = row
    if subject == PHOTO_SUBJECT:
        return photo_caption(style, rng)
    return clip_caption(subject, place, light, style, motion, rng)


def subject_coverage(spec: ClipSpec, clip: Clips, cells: int) -> Tensor:
    """Approximate coverage of the subject: uint8 [B, 1, L, cells, cells], 255 inside a disc around it, scaled by zoom.

    A latent's disc is at the mean position over its frames.
    """
    size = clip.frames.shape[-1]
    seen = torch.cat([clip.subject / size, (SUBJECT_RADIUS * clip.camera[..., 2:].exp())], -1)
    rest = seen[:, 1:].reshape(seen.shape[0], -1, TIME_FACTOR, 3).mean(2)
    x, y, radius = torch.cat([seen[:, :1], rest], 1)[..., None, None].unbind(2)
    line = (torch.arange(cells, device=clip.frames.device) + 0.5) / cells
    distance = ((line - x).square() + (line[:, None] - y).square()).sqrt()
    inside = ((radius - distance) * cells + 0.5).clamp(0, 1) * (spec.subject >= 0).view(-1, 1, 1, 1)
    return (inside.nan_to_num() * 255).round().byte().unsqueeze(1)
