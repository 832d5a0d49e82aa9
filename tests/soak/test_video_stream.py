"""Ten minutes of streaming at tiny size for every cache policy: flat memory, and the planned cache contents at every
chunk."""

from __future__ import annotations

import gc
from typing import Any

import psutil
import pytest

from cache.kv.policies import POLICIES
from pipelines.core.controls import Control
from pipelines.video.engine import VideoEngine
from tests.fakes.video_engine import SMALL, small_engine
from tests.unit.test_video_memory import OPTIONS

FRAMES = 10 * 60 * SMALL.frame_rate
_FLAT_BYTES = 24 * 2**20


def stream_for_ten_minutes(engine: VideoEngine) -> None:
    """Stream with occasional prompt changes."""
    cache, process = engine.core.cache, psutil.Process()
    held, resident, out, asked = cache.bytes, 0, 0, 0
    with engine.open(Control.of({"prompt": "0", "prompt_change": "cut"})) as stream:
        while out < FRAMES:
            while not stream.generate(stream.info.frames_per_chunk):
                engine.tick()
                out += len(stream.pull())
            cache.check_integrity()
            for row in stream._stream_rows.all_kv_rows:
                assert cache.ledger(row).length <= cache.policy.attended_tokens
            asked += 1
            if asked % 100 == 0:
                stream.apply(Control.of({"prompt": str(asked), "scene_cut": asked % 300 == 0}))
            if asked == 200:
                gc.collect()
                resident = process.memory_info().rss
        out += len(stream.flush())
        counts = stream.accounting
        assert counts.taken == counts.out == out
    gc.collect()
    assert cache.bytes == held
    assert process.memory_info().rss - resident < _FLAT_BYTES


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "full"])
def test_every_policy_streams_for_ten_minutes(policy: str) -> None:
    stream_for_ten_minutes(small_engine(policy=policy, max_streams=1, **OPTIONS[policy]))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "options",
    [
        {"stream": "step-batch", "policy": "adaptive-sink"},
        {"stream": "rolling", "window_frames": 9},
        {"storage": "int8"},
        {"storage": "rotated", "policy": "window"},
        {"rewind_bytes": 0},
        {"recache_drift": 0.1},
    ],
    ids=str,
)
def test_every_kind_of_stream_for_ten_minutes(options: dict[str, Any]) -> None:
    stream_for_ten_minutes(small_engine(max_streams=1, **options))
