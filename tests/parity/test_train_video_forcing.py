"""Teacher forcing in training attends to exactly what the engine's cache holds while streaming."""

from __future__ import annotations

import pytest
import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import make_policy
from pipelines.video.wan.actions import ActionEmbedder
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.text_cache import PlainText
from pipelines.video.wan.transformer import CausalWanTransformer
from tests.parity.conftest import Report
from train.video.forcing import (
    ForcedPass,
    ForcingCondition,
    JointPass,
    chunk_levels,
    clean_of,
    forced_frames,
    noised,
    velocity_loss,
)

CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    text_len=4,
    freq_dim=16,
    ffn_dim=32,
    num_layers=2,
)
GRID, FRAMES = (2, 2), 12


def make_transformer() -> CausalWanTransformer:
    torch.manual_seed(0)
    transformer = CausalWanTransformer(CONFIG)
    transformer.add_actions(ActionEmbedder(CONFIG.dim))
    transformer.requires_grad_(False)
    return transformer


def streamed(
    transformer: CausalWanTransformer, clean: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor,
    condition: ForcingCondition, *, chunk: int, window: int,
) -> torch.Tensor:  # fmt: skip
    """Return velocities, chunk by chunk through the engine's cache: a noisy pass, then a clean one that is kept."""
    policy = make_policy("window", grid=GRID, window_frames=window, chunk_frames=chunk)
    shape = KVShape(layers=2, heads=2, head_dim=16, grid=GRID, dtype=torch.float32, device=torch.device("cpu"))
    cache = KVCache(shape, policy, rotary=transformer.rotary)
    text, velocities = PlainText(transformer, condition.states), []
    for start in range(0, FRAMES, chunk):
        part = slice(start, start + chunk)
        actions = condition.actions[:, part]
        cache.begin(0, chunk)
        velocities.append(transformer(noisy[:, :, part], times[:, part], text, cache.view([0]), actions))
        transformer(clean[:, :, part], torch.zeros(1, chunk), text, cache.view([0]), actions)
    return torch.cat(velocities, 2)


@pytest.mark.parametrize(("chunk", "window"), [(3, 6), (3, 9), (1, 4), (3, 12)])
def test_a_forced_pass_equals_streaming_through_the_cache(chunk: int, window: int, report: Report) -> None:
    transformer = make_transformer()
    torch.manual_seed(1)
    clean, noise = torch.randn(2, 1, 4, FRAMES, 4, 4)
    levels = chunk_levels(1, FRAMES, chunk, shift=3.0, steps=torch.tensor([1.0, 0.5]))
    noisy, states = noised(clean, noise, levels), torch.randn(1, 4, 8)
    forced = ForcedPass(transformer, GRID, frames=FRAMES, chunk=chunk, window=window)
    condition = ForcingCondition(states=states, actions=torch.rand(1, FRAMES, 5))
    velocity = forced(clean, noisy, 1000 * levels, condition)
    wanted = streamed(transformer, clean, noisy, 1000 * levels, condition, chunk=chunk, window=window)
    assert report(f"teacher forcing, chunks of {chunk}, window {window} = the cache", [velocity - wanted]) < 2e-6


def test_what_a_frame_sees_spelled_out() -> None:
    seen = forced_frames(4, 2, 4)
    assert seen.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 0, 1, 1],
    ]
    assert forced_frames(4, 1, 2).int().tolist()[7] == [0, 0, 1, 0, 0, 0, 0, 1]


def test_a_joint_pass_ignores_frames_that_are_not_there() -> None:
    transformer = make_transformer()
    joint = JointPass(transformer, GRID, frames=6)
    latents, condition = (
        torch.randn(2, 4, 6, 4, 4),
        ForcingCondition(states=torch.randn(2, 4, 8), actions=torch.zeros(2, 6, 5)),
    )
    present = torch.tensor([[False, False, False, True, True, True], [True] * 6])
    times = torch.full((2, 6), 300.0)
    out = joint(latents, times, condition, present)
    changed = latents.clone()
    changed[:, :, :3] += 1
    other = joint(changed, times, condition, present)
    torch.testing.assert_close(other[0, :, 3:], out[0, :, 3:])
    assert not torch.allclose(other[1, :, 3:], out[1, :, 3:])


def test_the_formulas_of_flow_matching_are_inverse_to_each_other() -> None:
    clean, noise = torch.randn(2, 2, 4, 6, 3, 3)
    levels = chunk_levels(2, 6, 3, shift=3.0, steps=torch.tensor([1.0, 0.9]))
    assert torch.equal(levels[:, 0], levels[:, 2])
    assert ((levels >= 0) & (levels <= 1)).all()
    torch.testing.assert_close(clean_of(noised(clean, noise, levels), noise - clean, levels), clean)
    weight = torch.zeros(2, 1, 6, 1, 1)
    weight[:, :, 3:] = 1
    velocity = noise - clean
    assert velocity_loss(velocity, clean, noise, weight) == 0
    velocity[:, :, :3] += 1  # without weight
    assert velocity_loss(velocity, clean, noise, weight) == 0
    velocity[:, :, 3:] += 2
    torch.testing.assert_close(velocity_loss(velocity, clean, noise, weight), torch.tensor(4.0))
