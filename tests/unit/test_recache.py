"""After a cut of the prompt the past's shallow layers can be kept: which, by schedule or by the drift of attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from cache.kv.recall import Refresh, attention_drift
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.video.engine import VideoEngine
from pipelines.video.options import VideoOptions
from pipelines.video.recache import (
    DriftReading,
    RecachePass,
    chosen_recaching,
    first_layer,
    make_reading,
    recache_passes,
)
from pipelines.video.wan.blocks import BlockContext, WanBlock
from pipelines.video.wan.transformer import CausalWanTransformer
from tests.fakes.small_kv import HEAD_DIM, HEADS
from tests.fakes.video_engine import random_transformer, run_chunks, small_engine, small_model

CPU = torch.device("cpu")


def random(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, HEADS, HEAD_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 3, 99])
def test_drift_is_that_of_the_most_attended_tokens(tokens: int) -> None:
    queries, before, now = 2 * random(5, 0), random(9, 1), random(9, 2)
    expected = []
    for head in range(HEADS):
        old, new = (
            torch.stack([(k[:, head] @ q / HEAD_DIM**0.5).softmax(0) for q in queries[:, head]]).mean(0)
            for k in (before, now)
        )
        best = sorted(range(9), key=lambda j: -float(new[j]))[:tokens]
        expected.append(sum(abs(float(new[j] - old[j])) for j in best) / sum(float(new[j]) for j in best))
    found = attention_drift(queries, before, now, tokens=tokens)
    assert float(found) == pytest.approx(sum(expected) / HEADS, rel=1e-12)
    assert float(attention_drift(queries, now, now)) == 0


def test_the_first_layer_follows_from_the_drift_below_it() -> None:
    assert first_layer((2, 5, 7), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.45) == 5
    assert first_layer((2, 5, 7), [0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0], 0.45) == 0
    assert first_layer((2, 5, 7), [0.0] * 7, 0.45) == 7
    assert first_layer((2,), [float("nan")] * 2, 1.0) == 0


def test_options_choose_a_schedule_or_a_drift() -> None:
    assert chosen_recaching(10, 0, 0.0) is None
    scheduled, measured = chosen_recaching(10, 4, 0.0), chosen_recaching(10, 0, 0.2)
    assert scheduled is not None
    assert scheduled.boundaries == (4,)
    assert measured is not None
    assert (measured.boundaries, measured.drift) == ((2, 5, 7), 0.2)


def test_a_drift_is_read_only_when_it_has_arrived() -> None:
    recaching, reading = chosen_recaching(4, 0, 0.5), DriftReading(3, CPU)
    assert recaching is not None
    kept: Any = None
    first = RecachePass(recaching, kept, reading, measures=True)
    later = RecachePass(recaching, kept, reading, measures=False)
    assert first.refresh.drift is reading.device_drift
    assert later.refresh.first_layer == 0, "not measured yet: all layers, nobody waits"
    reading.device_drift.copy_(torch.tensor([0.1, 0.2, 0.9]))
    assert later.refresh.first_layer == 0
    assert first.reading is reading
    reading.start()
    assert later.refresh.first_layer == 2
    assert later.reading is None
    passes = recache_passes(recaching, [kept, kept], reading)
    assert [part.reading for part in passes] == [reading, None]
    assert passes[1].refresh.first_layer == 0, "another cut, not yet measured"
    assert make_reading(recaching, CPU) is not None
    assert make_reading(chosen_recaching(4, 1, 0.0), CPU) is None


def test_what_cannot_keep_layers_is_refused() -> None:
    for options in ({"recache_from": 2}, {"recache_drift": -1.0}, {"recache_from": 1, "guidance": True}):
        with pytest.raises(InputError):
            small_engine(**options)
    for policy in ("dual", "rebuild"):
        with pytest.raises(InputError, match="recache_from"):
            small_engine(policy=policy, recache_from=1)


def deep_engine(**options: Any) -> VideoEngine:
    """Three layers."""
    config = dataclasses.replace(random_transformer(torch.float32).config, num_layers=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformer = CausalWanTransformer(config).eval().requires_grad_(False)
    return VideoEngine(small_model(transformer=transformer), VideoOptions(max_streams=1, **options))


def contents(engine: VideoEngine, layer: int, frames: int) -> list[torch.Tensor]:
    """Keys and values of the first frames, in order of time."""
    cache = engine.core.cache
    spans = [span for span in cache.ledger(0).spans if span.frame < frames]
    index = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    return list(cache._bank.store.take(layer, 0, index))


@torch.inference_mode()
def plain_refresh(engine: VideoEngine, hidden: torch.Tensor, frames: int) -> torch.Tensor:
    """Layer 2's keys of frames that attend to each other, from the input of layer 1 and the engine's current text."""
    network = engine.core.model.transformer
    window = network.full_window(frames, engine.core.policy.grid)
    _, time = network.condition_embedder.time(torch.zeros(1, frames))
    shared = BlockContext(time=time, text=engine.core.text_rows.view([0]), kv=window, rotary=network.rotary)
    found = network.blocks[1](hidden.view(1, frames, 6, -1), 1, shared)
    keys: torch.Tensor = network.blocks[2].before(found, time, *window.query_rotation, network.rotary)[1][0]  # type: ignore[operator]
    return keys


def test_layers_from_the_boundary_on_are_computed_with_the_new_prompt_and_the_others_kept() -> None:
    engine = deep_engine(recache_from=1)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 2)
    old = [contents(engine, layer, 2) for layer in range(3)]
    hidden = engine.core.cache.keep(0, [0, 1]).hidden[0]
    stream.apply(Control.of({"prompt": "a robot", "prompt_change": "cut"}))
    run_chunks(stream, engine, 1)
    new = [contents(engine, layer, 2) for layer in range(3)]
    for layer in (0, 1):  # layer 1's keys are made of its input, which is kept
        for a, b in zip(old[layer], new[layer], strict=True):
            assert torch.equal(a, b)
    assert float((old[2][0] - new[2][0]).abs().max()) > 1e-3
    torch.testing.assert_close(plain_refresh(engine, hidden, 2), new[2][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("options", "expected"), [({"recache_from": 1}, 0), ({"recache_drift": 1e9}, 1)])
def test_kept_layers_are_not_computed(options: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two context passes, a schedule skips the first block in both, a drift only in the one after it is measured."""
    engine = small_engine(max_streams=1, **options)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 4)
    counts = {0: 0, 1: 0}
    forward = WanBlock.forward

    def counted(block: WanBlock, hidden: torch.Tensor, layer: int, shared: Any) -> torch.Tensor:
        counts[layer] += 1
        return forward(block, hidden, layer, shared)

    monkeypatch.setattr(WanBlock, "forward", counted)
    stream.apply(Control.of({"prompt": "a robot", "prompt_change": "cut"}))
    run_chunks(stream, engine, 1)
    context = counts[1] - 3  # two steps and a clean pass
    assert context >= 2
    assert counts[0] == 3 + expected
    engine.core.cache.check_integrity()


@torch.inference_mode()
def test_hidden_states_move_and_rewind_with_their_tokens() -> None:
    engine = small_engine(max_streams=1, recache_from=1)
    stream = engine.open(Control.of({"prompt": "a cat"}))
    run_chunks(stream, engine, 3)
    cache = engine.core.cache
    frames = [span.frame for span in cache.ledger(0).spans][-3:]
    before = cache.keep(0, frames)
    cache.flush(0, 3)
    run_chunks(stream, engine, 1)
    after = cache.keep(0, frames)
    for a, b in zip((before.keys, before.values, before.hidden), (after.keys, after.values, after.hidden), strict=True):
        assert torch.equal(a, b)
    snapshot = cache.snapshot(0, copy=True)
    run_chunks(stream, engine, 3)
    cache.restore(0, snapshot)
    assert torch.equal(cache.keep(0, frames).hidden, before.hidden)
    assert Refresh(kept=before, first_layer=1).drift is None
