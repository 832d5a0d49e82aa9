"""The tick log: ordered, bounded, plain JSON, with everything that a replay needs."""

from __future__ import annotations

import json
from dataclasses import asdict

from pipelines.core.controls import Control
from pipelines.core.tick_log import Record, StreamRecord, TickLog
from pipelines.image.engine import ImageEngine
from tests.fakes.image_model import cheap_model, frames


def test_it_is_bounded_and_the_sink_sees_everything() -> None:
    seen: list[Record] = []
    log = TickLog(capacity=3, sink=seen.append)
    for tick in range(5):
        log.add(StreamRecord(tick=tick, stream=0, event="reset"))
    assert [r.tick for r in log.records()] == [2, 3, 4]
    assert [r.tick for r in seen] == [0, 1, 2, 3, 4]


def test_a_short_stream_is_told_in_full() -> None:
    log = TickLog()
    engine = ImageEngine(cheap_model(), tick_log=log)
    stream = engine.open(Control.of({"prompt": "a cat", "strength": 0.5, "depth": 1, "seed": 9}))
    one, two = frames(2)
    assert stream.push(one)
    assert not stream.push(two)
    engine.tick()
    assert stream.apply(Control(guidance_scale=2.0)) == 1
    engine.tick()
    records = [asdict(r) for r in log.records()]
    assert json.loads(json.dumps(records)) is not None
    kinds = [r["kind"] for r in records]
    assert kinds == ["stream", "control", "push", "birth", "push", "tick", "timing", "control", "tick", "timing"]
    assert [r["outcome"] for r in records if r["kind"] == "push"] == ["accepted", "refused"]
    birth = records[3]
    assert (birth["seed"], birth["timesteps"], birth["source_seqs"], birth["tick"]) == (9, (499, 259), (0,), 0)
    ticks = [r for r in records if r["kind"] == "tick"]
    assert [t["finished"] for t in ticks] == [(), ((0, 0),)]
    assert [(row["step"], row["timestep"], row["guidance_scale"]) for t in ticks for row in t["rows"]] == [
        (0, 499, 1.0),
        (1, 259, 2.0),
    ]
    assert records[7]["changes"] == {"guidance_scale": 2.0}
    assert all(value >= 0 for t in log.timings() for value in (t.encode_ms, t.denoise_ms, t.decode_ms))


def test_idle_ticks_are_not_counted() -> None:
    engine = ImageEngine(cheap_model())
    engine.open()
    for _ in range(3):
        engine.tick()
    assert engine.core.next_tick == 0
    assert engine.log.ticks() == ()
