"""The causal model's training at a tiny size on made-up latents: losses, continued streams, every stage."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.transformer import CausalWanTransformer
from train.session import TINY, TrainingSession
from train.video.bank import ClipBank, draw_windows
from train.video.carry_over import carry_over, weights_of
from train.video.causal import CHUNK, GRID, SINK, WINDOW, few_step_levels, make_networks
from train.video.checkpoints import read_parts, save_parts
from train.video.distill import (
    ALONE_SHARE,
    STUDENT,
    Game,
    _seen,
    make_players,
    train_scorer,
    train_student,
    young_streams,
)
from train.video.rollouts import Pool
from train.video.steering import steered, train_actions
from train.video.teacher import (
    OPENING_SHARE,
    OPENINGS_UNTIL,
    SINGLE_SHARE,
    Batch,
    as_batch,
    kind_of_step,
    train_teacher,
)
from train.video.teacher import STAGE as TEACHER
from train.video.words import STAGE as WORDS

VOCABULARY = 40


SMALL = WanConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    text_dim=128,
    text_len=32,
    freq_dim=32,
    ffn_dim=32,
    num_layers=2,
)


@pytest.fixture(autouse=True)
def small_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.video.causal.make_transformer", lambda: CausalWanTransformer(SMALL))


@pytest.fixture
def session(tmp_path: Path) -> TrainingSession:
    return TrainingSession(device=torch.device("cpu"), out=tmp_path, resume=tmp_path / "none", scale=TINY)


@pytest.fixture(scope="module")
def bank() -> ClipBank:
    """Latents whose value is their index in time plus the clip's number."""
    torch.manual_seed(0)
    times = torch.arange(12.0) / 12
    latents = (times + torch.arange(8.0)[:, None])[:, None, :, None, None].expand(8, 16, 12, 16, 16)
    return ClipBank(
        latents=latents.half(),
        ids=torch.randint(1, VOCABULARY, (8, 4, 32)).short(),
        actions=torch.zeros(8, 12, 5).half(),
        coverage=torch.zeros(8, 1, 12, 16, 16, dtype=torch.uint8),
        spec=torch.zeros(8, 5, dtype=torch.int64),
        empty_ids=torch.tensor([1] + [0] * 31),
    )


def test_a_cut_window_has_another_clip_s_frames_and_no_loss_on_them(bank: ClipBank) -> None:
    torch.manual_seed(3)
    windows = draw_windows(bank, 64, 9, begin_share=0.5)
    windows = windows._replace(latents=windows.latents + 10 * torch.arange(64.0)[:, None, None, None, None])
    batch = as_batch(windows, CHUNK, cut_share=0.5)
    foreign = (batch.latents - windows.latents).abs().amax((1, 3, 4)) > 0
    counted = batch.weight[:, 0, :, 0, 0] > 0
    assert foreign.any()
    assert not (foreign & counted).any()
    starts = foreign.sum(1)
    assert set(starts.tolist()) <= {0, 3, 6}
    for row in range(64):
        begins = windows.begins[row] and starts[row] == 0
        first = 0 if begins else max(int(starts[row]), CHUNK)
        assert counted[row].tolist() == [index >= first for index in range(9)]
        assert batch.follows[row].tolist() == [index >= starts[row] + CHUNK for index in range(9)]


def test_a_window_with_a_sink_keeps_its_clip_s_beginning(bank: ClipBank) -> None:
    torch.manual_seed(3)
    windows = draw_windows(bank, 64, 9, sink=SINK)
    place = ((windows.latents[:, 0, :, 0, 0] % 1) * 12).round()
    assert (place[:, :SINK] == torch.arange(float(SINK))).all()
    assert torch.equal(place[:, SINK:], windows.first[:, None] + torch.arange(float(SINK), 9.0))
    assert len(set(windows.first.tolist())) > 2


def make_pool(session: TrainingSession, bank: ClipBank) -> Pool:
    networks = make_networks(session.device, vocabulary=VOCABULARY, seed=1)
    levels = few_step_levels(session.device)
    return Pool(
        networks.transformer, bank, networks.encode, 4, grid=GRID, past=WINDOW - CHUNK, chunk=CHUNK, sink=SINK,
        levels=levels,
    )  # fmt: skip


def test_streams_age_begin_anew_and_follow_the_clip_while_they_are_forced(
    session: TrainingSession, bank: ClipBank
) -> None:
    torch.manual_seed(5)
    pool = make_pool(session, bank)
    ages = []
    for _ in range(6):
        pool.begin()
        forced = pool.is_forced.clone()
        pool.x0.fill_(-1.0)
        pool.finish()
        newest = pool.latents[:, :, -CHUNK:]
        assert (newest[~forced] == -1).all()
        assert (newest[forced] >= 0).all()
        ages.append(pool.age.clone())
    assert all(bool((age % CHUNK == 0).all()) for age in ages)
    assert ages[0].tolist() == [CHUNK] * 4
    assert ((ages[3] == ages[2] + CHUNK) | (ages[3] == CHUNK)).all()
    assert pool.present.sum(1).tolist() == [min(WINDOW, int(age) + CHUNK) for age in pool.age]


def test_a_pool_s_streams_equal_the_engine_s_cache(session: TrainingSession, bank: ClipBank) -> None:
    from cache.kv.cache import KVCache, KVShape
    from cache.kv.policies import make_policy
    from pipelines.video.wan.text_cache import PlainText

    pool = make_pool(session, bank)
    transformer = pool._transformer
    pool.begin()
    policy = make_policy("sink", grid=GRID, window_frames=WINDOW, sink_frames=SINK, chunk_frames=CHUNK)
    shape = KVShape(
        layers=2, heads=2, head_dim=16, grid=GRID, cache_rows=4, dtype=torch.float32, device=torch.device("cpu")
    )
    cache = KVCache(shape, policy, rotary=transformer.rotary)
    pool._limit.fill_(10_000)
    made: list[torch.Tensor] = []
    with torch.no_grad():
        for number in range(7):
            if number:
                pool.begin()
            cache_rows = [0, 1, 2, 3]
            for row in cache_rows:
                cache.begin(row, CHUNK)
            pool._forced.zero_()
            pool.level.fill_(0.75)
            actions, text = pool.actions[:, pool.past :], PlainText(transformer, pool.states)
            ours = pool.velocity(transformer, pool.x, pool.level)
            theirs = transformer(pool.x, torch.full((4, 3), 750.0), text, cache.view(cache_rows), actions)
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
            pool.x0.copy_(torch.randn_like(pool.x0))
            pool.finish()
            made.append(pool.x0.clone())
            kept = made if len(made) < 5 else [*made[: SINK // CHUNK], *made[-(WINDOW - SINK) // CHUNK :]]
            assert torch.equal(pool.latents[:, :, -CHUNK * len(kept) :], torch.cat(kept, 2))
            transformer(pool.x, torch.zeros(4, 3), text, cache.view(cache_rows), actions)


def test_openings_come_alone_and_then_now_and_then() -> None:
    rng = random.Random(0)
    first = [kind_of_step(0.9 * OPENINGS_UNTIL, step, rng) for step in range(4)]
    assert first == ["picture", "opening"] * 2
    later = [kind_of_step(0.9, step, rng) for step in range(2000)]
    assert {kind: later.count(kind) / 2000 for kind in set(later)} == pytest.approx(
        {"opening": OPENING_SHARE, "singles": SINGLE_SHARE, "chunks": 1 - OPENING_SHARE - SINGLE_SHARE}, abs=0.04
    )


def test_a_teacher_that_goes_on_keeps_its_text_encoder(session: TrainingSession, bank: ClipBank) -> None:
    session.save(WORDS, text=make_networks(session.device, vocabulary=VOCABULARY, seed=1).text)
    first = train_teacher(session, bank, bank, VOCABULARY, 0.0)
    written = read_parts(session.out, "teacher")
    assert any(not torch.equal(p.half().float(), p) for p in first.text.parameters())
    then = train_teacher(session, bank, bank, VOCABULARY, 0.0)
    again = read_parts(session.out, "teacher")
    assert written.keys() == again.keys()
    same = {name: torch.equal(values, again[name]) for name, values in written.items()}
    assert all(same[name] for name in same if name.startswith("text."))
    assert not all(same[name] for name in same if name.startswith("transformer."))
    assert all(parameter.dtype == torch.float32 for parameter in then.text.parameters())


def test_every_stage_trains_saves_and_goes_on(session: TrainingSession, bank: ClipBank) -> None:
    session.save(WORDS, text=make_networks(session.device, vocabulary=VOCABULARY, seed=1).text)
    train_teacher(session, bank, bank, VOCABULARY, 0.0)
    train_scorer(session, bank, VOCABULARY, 0.0)
    student = train_student(session, bank, VOCABULARY, 0.0)
    assert all(parameter.isfinite().all() for parameter in student.transformer.parameters())
    names = {path.name for path in session.out.iterdir()}
    assert {"teacher-0.safetensors", "scorer-0.safetensors", "student-0.safetensors", "curve.jsonl"} <= names
    players = make_players(session, VOCABULARY)
    game = Game(session, bank, players)
    before = [p.detach().clone() for p in game.student.full]
    game.set_rates(1.0)
    game.roll(2)
    game.on_streams()
    changed = [not torch.equal(a, b) for a, b in zip(before, game.student.full, strict=True)]
    assert all(changed)


def test_commands_are_learnt_and_streams_without_any_stay_to_the_bit(
    session: TrainingSession, bank: ClipBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingSession, "dtype", torch.bfloat16)  # as on a GPU: what stays must not be rounded
    torch.manual_seed(5)
    networks = make_networks(session.device, vocabulary=VOCABULARY, seed=1)
    save_parts(session, TEACHER, transformer=networks.transformer, text=networks.text)
    save_parts(session, STUDENT, transformer=networks.transformer)
    before = read_parts(session.out, STUDENT)
    moving = replace(bank, actions=bank.actions.clone())
    moving.actions[1::2] = torch.randn(4, 12, 5).half()
    assert steered(moving).clips == 4
    with pytest.raises(ValueError, match="none of the bank's 8 clips has actions"):
        steered(bank)
    assert (steered(moving).latents[1] == moving.latents[3]).all()
    train_actions(replace(session, rate=100.0), moving, VOCABULARY, 0.0)
    after = read_parts(session.out, STUDENT)
    assert before.keys() == after.keys()
    changed = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert changed == {f"transformer.action_embedder.linear_{layer}.weight" for layer in (1, 2)}


def test_a_young_stream_s_frames_keep_their_actions_and_their_subject() -> None:
    torch.manual_seed(2)
    rows = 64
    number = torch.arange(rows * WINDOW).view(rows, WINDOW).float()
    batch = Batch(
        latents=number[:, None, :, None, None].expand(-1, 2, -1, 3, 3),
        ids=torch.zeros(rows, 32, dtype=torch.int64),
        actions=number[:, :, None].expand(-1, -1, 5),
        coverage=number[:, None, :, None, None].expand(-1, 1, -1, 3, 3),
        counted=torch.ones(rows, WINDOW, dtype=torch.bool),
        follows=torch.ones(rows, WINDOW, dtype=torch.bool),
    )
    begins = torch.arange(rows) % 2 == 0
    young, present = young_streams(batch, begins)
    frames = young.latents[:, 0, :, 0, 0]
    assert torch.equal(young.actions[:, :, 0], frames)
    assert torch.equal(young.coverage[:, 0, :, 0, 0], frames)
    assert torch.equal(frames[~begins], number[~begins])
    assert present[~begins].all()
    lengths = present.sum(1)
    assert set(lengths[begins].tolist()) == set(range(CHUNK, WINDOW + 1, CHUNK))
    for row in range(rows):
        length = int(lengths[row])
        assert present[row, WINDOW - length :].all()
        assert torch.equal(frames[row, WINDOW - length :], number[row, :length])


def test_some_windows_show_only_their_newest_chunk() -> None:
    torch.manual_seed(1)
    present = torch.arange(WINDOW) >= torch.tensor([0, 6])[:, None].repeat(200, 1)
    seen = _seen(present)
    assert (seen <= present).all()
    alone = seen.sum(1) == CHUNK
    assert torch.equal(seen[~alone], present[~alone])
    assert seen[:, -CHUNK:].all()
    assert float(alone.double().mean()) == pytest.approx(ALONE_SHARE, abs=0.08)


def test_what_a_student_has_learnt_is_carried_over_to_a_newer_teacher(tmp_path: Path) -> None:
    for folder, stage, seed in (("old", "teacher", 1), ("old", "student", 2), ("new", "teacher", 3)):
        made = TrainingSession(device=torch.device("cpu"), out=tmp_path / folder, resume=tmp_path, scale=TINY)
        made.out.mkdir(exist_ok=True)
        networks = make_networks(made.device, vocabulary=VOCABULARY, seed=seed)
        save_parts(made, stage, transformer=networks.transformer)
    carry_over(tmp_path / "old", tmp_path / "new", tmp_path / "out", 0.25)
    old, student = (weights_of(tmp_path / "old", stage) for stage in ("teacher", "student"))
    new, carried = weights_of(tmp_path / "new", "teacher"), weights_of(tmp_path / "out", "student")
    for name, value in carried.items():
        torch.testing.assert_close(value, new[name] + 0.25 * (student[name] - old[name]), atol=2e-3, rtol=2e-3)
    assert not torch.equal(new["blocks.0.attn1.to_q.weight"], carried["blocks.0.attn1.to_q.weight"])
    with pytest.raises(FileNotFoundError, match="run stage 'student'"):
        carry_over(tmp_path / "new", tmp_path / "new", tmp_path / "out", 0.25)
