"""bench.kv_reach: the ages of what a policy keeps, found by values, on a tiny random model."""

from __future__ import annotations

import pytest
import torch

from bench.kv_reach import TracedStreams, frame_ages, marks, reach
from bench.rollouts import Rollout, RolloutSettings
from pipelines.video.options import VideoOptions
from tests.fakes.video_engine import small_model


def test_ages_of_tokens_that_were_found_again() -> None:
    values = torch.randn(8, 2, 4)  # two tokens a frame, two heads
    history = marks(values)
    assert frame_ages(history, history, 2).tolist() == [[4, 4, 3, 3, 2, 2, 1, 1]] * 2
    chosen = torch.stack([history[0, [7, 0]], history[1, [2, 4]]])
    assert frame_ages(chosen, history, 2).tolist() == [[1, 4], [3, 2]]
    with pytest.raises(ValueError, match="has not made"):
        frame_ages(history + 1, history, 2)


@pytest.mark.parametrize(
    ("policy", "options", "oldest"),
    [
        ("window", {}, 4),
        ("sink", {"sink_frames": 1}, 10),
        ("r1-kv", {"sink_frames": 0, "recent_frames": 2, "pool_tokens": 3}, None),
    ],
)
def test_how_far_back_a_policy_reaches(policy: str, options: dict[str, int], oldest: int | None) -> None:
    """A window of 6 with a chunk of 2: after six chunks 10 frames are past, of which 4 are attended."""
    settings = RolloutSettings(options=VideoOptions(policy=policy, policy_options=options))
    rollout = Rollout(small_model(), ["a cat"], settings)
    traced = TracedStreams(rollout.cache, 2)
    rollout.cache = traced  # type: ignore[assignment]
    for _ in range(6):
        rollout.next_piece()
    found = reach(traced, 6)
    assert traced.attended[0].shape == (2, 36)
    if oldest is None:
        assert found["oldest"] > 4
        assert found["distinct_frames"] > 4
    else:
        assert found["oldest"] == oldest
        assert found["distinct_frames"] == 4
