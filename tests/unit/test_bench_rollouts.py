"""bench.rollouts: streams in lockstep give the engine's frames for every policy; folding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.rollouts import Rollout, RolloutSettings, engine_noise
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.video.options import VideoOptions
from tests.fakes.video_engine import CHANNELS, HEIGHT_PX, SMALL, WIDTH_PX, run_chunks, small_engine, small_model

CHUNKS = 5
SHAPE = (2, CHANNELS, HEIGHT_PX // 8, WIDTH_PX // 8)
POLICIES = {
    "full": {"max_frames": 40},
    "window": {},
    "sink": {"sink_frames": 1},
    "adaptive-sink": {"sink_frames": 1, "threshold": 0.9},
    "deep-sink": {"sink_frames": 3},
    "participative": {"window_frames": 7, "sink_frames": 1, "budget_frames": 4, "recent_frames": 1},
    "heavy-hitter": {"heavy_frames": 2, "recent_frames": 2},
    "r1-kv": {"window_frames": 7, "sink_frames": 1, "recent_frames": 1, "pool_tokens": 3},
    "packed": {"sink_frames": 1, "mid_blocks": 2, "block_frames": 2, "recent_frames": 2, "pooling": (2, 1, 1)},
    "dual": {"context_frames": 2, "local_frames": 4},
    "rebuild": {"context_frames": 2},
}


def _settings(policy: str, **changes: object) -> RolloutSettings:
    options = VideoOptions(policy=policy, policy_options=POLICIES[policy], work_dtype=torch.float32)
    return RolloutSettings(options=options, **changes)  # type: ignore[arg-type]


def _rolled(policy: str, seeds: tuple[int, ...] = (3, 4), *, folded: bool | None = None) -> np.ndarray:
    """uint8 [2, frames, H, W, 3]."""
    noise = engine_noise(SHAPE, seeds, torch.device("cpu"))
    rollout = Rollout(small_model(), ("a cat", "a dog"), _settings(policy, folded=folded), noise=noise)
    return torch.cat([rollout.next_piece() for _ in range(CHUNKS)], 1).numpy()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_rollout_gives_the_engines_frames(policy: str) -> None:
    """For every policy, beyond a full window; within one level of 255 where 8-bit storage rounds differently."""
    rolled = _rolled(policy)
    engine = small_engine(policy=policy, policy_options=POLICIES[policy])
    for row, (prompt, seed) in enumerate((("a cat", 3), ("a dog", 4))):
        with engine.open(Control.of({"prompt": prompt, "seed": seed})) as stream:
            images = np.stack(run_chunks(stream, engine, CHUNKS))
        assert images.shape == rolled[row].shape
        assert np.abs(images.astype(int) - rolled[row].astype(int)).max() <= 1
        assert images.std() > 1


@pytest.mark.parametrize("policy", ["window", "deep-sink", "heavy-hitter", "r1-kv", "dual", "rebuild"])
def test_streams_folded_into_heads_equal_streams_in_rows(policy: str) -> None:
    folded, rows = _rolled(policy, folded=True), _rolled(policy, folded=False)
    assert np.abs(folded.astype(int) - rows.astype(int)).max() <= 1
    assert np.abs(folded[0].astype(int) - folded[1].astype(int)).max() > 8


def test_the_devices_noise_is_the_same_for_the_same_seed() -> None:
    def rolled(seed: int) -> torch.Tensor:
        rollout = Rollout(small_model(), ("a cat",), RolloutSettings(seed=seed))
        return torch.cat(list(rollout.pieces(12)), 1)

    assert rolled(1).shape[1] == 13
    assert torch.equal(rolled(1), rolled(1))
    assert not torch.equal(rolled(1), rolled(2))


def test_memory_is_said_and_other_kinds_are_refused() -> None:
    rollout = Rollout(small_model(), ("a cat", "a dog"))
    assert rollout.bytes["kv"] > 0
    assert rollout.cache.folded
    with pytest.raises(InputError, match="chunk by chunk"):
        Rollout(small_model(replace(SMALL, guidance=3.0)), ("a cat",))
    with pytest.raises(InputError, match="takes no actions"):
        Rollout(small_model(), ("a cat",), actions=torch.zeros(1, 4, 5))
