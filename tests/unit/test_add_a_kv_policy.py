"""examples/add_a_kv_policy.py: a KV policy that is one file and one row, against the same rule over plain numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cache.kv.plan import KVError
from cache.kv.policies import POLICIES, make_policy
from examples.add_a_kv_policy import EveryNthPolicy, main
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, ModelError
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine
from pipelines.video.options import VideoOptions
from tests.fakes.kv_notation import plans, walk
from tests.fakes.video_engine import SMALL, run_chunks, small_model

TABLE = {**POLICIES, "every-nth": EveryNthPolicy}


def attended(chunks: list[int], *, window: int, sink: int, recent: int, every: int) -> list[list[int]]:
    """The frames that each chunk sees, itself included, by the rule's words alone."""
    kept: list[int] = []
    seen, reached = [], 0
    for frames in chunks:
        first = [frame for frame in kept if frame < sink]
        latest = [frame for frame in kept if frame >= sink][-recent:] if recent else []
        between = [frame for frame in kept if frame not in first + latest and frame % every == 0]
        while len(first + between + latest) + frames > window:
            between.pop(0)
        kept = first + between + latest + [*range(reached, reached + frames)]
        seen.append(kept)
        reached += frames
    return seen


@pytest.mark.parametrize(
    ("window", "sink", "recent", "every"), [(10, 1, 3, 4), (12, 3, 3, 3), (9, 0, 2, 1), (7, 2, 0, 2), (8, 2, 3, 5)]
)
@pytest.mark.parametrize("chunks", [[3] * 12, [1, 3, 2] * 6])
def test_it_keeps_the_frames_that_the_rule_says(
    window: int, sink: int, recent: int, every: int, chunks: list[int]
) -> None:
    options = {"window_frames": window, "sink_frames": sink, "recent_frames": recent, "every": every}
    policy = make_policy("every-nth", grid=(2, 3), policies=TABLE, **options)
    found = plans(policy, chunks)
    frames = [[span.frame for span in plan.ledger.spans] for plan in found]
    assert frames == attended(chunks, window=window, sink=sink, recent=recent, every=every)
    for plan in found:
        positions = [span.position for span in plan.ledger.spans]
        assert positions == list(range(len(positions)))
        assert {*positions} <= {*policy.position_range(plan.ledger)}
        starts = [span.start for span in plan.ledger.spans]
        assert len({*starts}) == len(starts)
        assert plan.ledger.attended == (0, 6 * len(starts))


def test_it_is_the_sink_policy_where_every_frame_is_kept() -> None:
    sizes = {"window_frames": 9, "sink_frames": 2}
    usual = make_policy("sink", grid=(1, 1), **sizes)
    mine = make_policy("every-nth", grid=(1, 1), policies=TABLE, **sizes, every=1)
    assert walk(mine, [3] * 9) == walk(usual, [3] * 9)


@pytest.mark.parametrize("options", [{"every": 0}, {"sink_frames": -1}, {"window_frames": 8}])
def test_what_cannot_be_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(KVError, match="at least"):
        make_policy("every-nth", grid=(1, 1), policies=TABLE, **options)


def test_the_engine_finds_it_by_name_in_the_table_alone() -> None:
    video = {"kv_policy": "every-nth", "policy_options": {"every": 0}}
    with pytest.raises(ModelError, match=r"no cache policy 'every-nth'\. Use one of: full, window"):
        load_engine("mini-video", device="cpu", video=video, notice=lambda text: None)
    with pytest.raises(ControlError, match="'every-nth' cannot be made: every must be at least 1"):
        load_engine("mini-video", device="cpu", video=video, policies=TABLE, notice=lambda text: None)


def test_the_frames_of_a_stream_follow_the_rule() -> None:
    """To the bit those of the sink where nothing is thinned out, and others as soon as something is."""

    def shown(policy: str, **options: int) -> np.ndarray:
        chosen = VideoOptions(policy=policy, policy_options=options, window_frames=8, sink_frames=1, max_streams=1)
        engine = VideoEngine(small_model(SMALL), chosen, policies=TABLE)
        with engine.open(Control.of({"prompt": "a cat", "seed": 5})) as stream:
            return np.stack(run_chunks(stream, engine, 6))

    usual = shown("sink")
    assert np.array_equal(usual, shown("every-nth", every=1))
    thinned = shown("every-nth", every=4)
    same = [np.array_equal(*pair) for pair in zip(usual, thinned, strict=True)]
    assert same[0]
    assert not same[-1]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main("a red ball on a table")
    lines = capsys.readouterr().out.splitlines()
    found = [[int(frame) for frame in re.findall(r"\d+", line.partition("[")[2])] for line in lines]
    assert found == attended([3] * 5, window=10, sink=1, recent=3, every=4)
    assert lines[1].startswith("chunk 1: 12 frames, saw")
