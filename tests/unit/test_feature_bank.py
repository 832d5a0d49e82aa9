"""The formulas of the feature bank and its lines against plain computations, spelled out."""

from __future__ import annotations

import random

import pytest
import torch

from pipelines.image.feature_bank.formulas import extended_attention, fused, merged, random_orders
from pipelines.image.feature_bank.lines import NO_LINE, LineStates


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_extended_attention_is_a_softmax_over_the_frame_and_the_bank() -> None:
    heads, (query, key, value) = 2, (features(2, 3, 8, seed=s) for s in range(3))
    bank_key, bank_value = features(2, 5, 8, seed=3), features(2, 5, 8, seed=4)
    got = extended_attention(query, (key, bank_key), (value, bank_value), heads=heads)
    for row in range(2):
        keys, values = torch.cat([key[row], bank_key[row]]), torch.cat([value[row], bank_value[row]])
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            for token in range(3):
                weights = torch.tensor([float(query[row, token, part] @ k[part]) / 4**0.5 for k in keys]).double().exp()
                plain = sum(w * v[part] for w, v in zip(weights / weights.sum(), values, strict=True))
                torch.testing.assert_close(got[row, token, part], plain, atol=1e-6, rtol=0)


def test_attending_to_a_second_copy_of_the_frame_changes_nothing() -> None:
    query, key, value = (features(2, 6, 8, seed=s) for s in range(3))
    once = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(extended_attention(query, (key, key), (value, value), heads=1), once)


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.98, 1.5])
def test_fusion_moves_towards_the_nearest_neighbour_where_it_is_near(threshold: float) -> None:
    x, bank = features(2, 7, 4), features(2, 5, 4, seed=1)
    bank[0, 3] = 2 * x[0, 1]  # cosine 1
    strength = torch.tensor([0.8, 0.25])
    got = fused(x, bank, strength, torch.tensor(threshold, dtype=torch.float64))
    for row in range(2):
        for token in range(7):
            own = x[row, token]
            cosines = [float(own @ b / (own.norm() * b.norm())) for b in bank[row]]
            best = max(range(5), key=cosines.__getitem__)
            s = float(strength[row]) if cosines[best] >= threshold else 0.0
            torch.testing.assert_close(got[row, token], (1 - s) * own + s * bank[row, best], atol=1e-7, rtol=0)
    assert (threshold > 1) == got.equal(x)


def test_strength_0_is_exactly_no_fusion() -> None:
    x = features(1, 7, 4)
    assert fused(x, features(1, 5, 4, seed=1), torch.zeros(1), torch.tensor(-1.0)).equal(x)


def test_merging_joins_each_of_one_half_to_its_nearest_of_the_other() -> None:
    tokens = 6
    banked = (features(2, tokens, 4), features(2, tokens, 3, seed=1))
    new = (features(2, tokens, 4, seed=2), features(2, tokens, 3, seed=3))
    order = random_orders(tokens, 2, seed=4)
    got = merged(banked, new, order)
    for row in range(2):
        keys, values = (torch.cat([b[row], n[row]]) for b, n in zip(banked, new, strict=True))
        groups = {int(stays): [int(stays)] for stays in order[row, tokens:]}
        for joins in order[row, :tokens].tolist():
            cosine = {s: float(keys[joins] @ keys[s] / (keys[joins].norm() * keys[s].norm())) for s in groups}
            groups[max(cosine, key=cosine.__getitem__)].append(joins)
        for place, members in enumerate(groups.values()):  # in the order of the half that stays
            for result, whole in zip(got, (keys, values), strict=True):
                torch.testing.assert_close(result[row, place], whole[members].mean(0), atol=1e-6, rtol=0)
    assert got[0].shape == banked[0].shape


def test_orders_are_seeded_permutations() -> None:
    orders = random_orders(5, 3, seed=1)
    assert orders.equal(random_orders(5, 3, seed=1))
    assert all(sorted(order.tolist()) == list(range(10)) for order in orders)


class PlainLines:
    """What `LineStates` does, with a dictionary: line -> (epoch, frames seen)."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.seen: dict[int, tuple[int, int]] = {}

    def run(self, entries: list[tuple[int, int]]) -> list[tuple[bool, bool, bool]]:
        """entries: (line or -1, epoch) -> (filled, writes, due) of each."""
        result, winners = [], {}
        for line, epoch in entries:
            if line >= 0 and epoch >= self.seen.get(line, (-1, 0))[0]:
                winners[line] = max(winners.get(line, -1), epoch)
        last = {line: max(i for i, e in enumerate(entries) if e == (line, epoch)) for line, epoch in winners.items()}
        for place, (line, epoch) in enumerate(entries):
            filled = line >= 0 and self.seen.get(line, (-1, 0))[0] == epoch
            count = self.seen[line][1] if filled else 0
            writes = last.get(line) == place
            result.append((filled, writes, writes and count % self.interval == 0))
        for line, epoch in winners.items():
            count = self.seen[line][1] if self.seen.get(line, (-1, 0))[0] == epoch else 0
            self.seen[line] = (epoch, count + 1)
        return result


def test_lines_over_random_passes_of_several_streams_and_epochs() -> None:
    choose, plain = random.Random(1), PlainLines(interval=3)
    states = LineStates(8, 3, torch.device("cpu"))
    for tick in range(200):
        entries = []
        for _ in range(choose.randint(1, 5)):
            first, step, negative = choose.choice([NO_LINE, 0, 4]), choose.randint(0, 1), choose.randint(0, 1)
            entries.append((first, step, negative, max(0, tick // 20 - choose.randint(0, 1))))
        columns = torch.tensor([[first, epoch, 0.5] for first, _, _, epoch in entries])
        step, negative = (torch.tensor([entry[i] for entry in entries]) for i in (1, 2))
        got = states.begin(columns, step, negative)
        lines = [(f + 2 * s + n if f >= 0 else -1, e) for f, s, n, e in entries]
        expected = plain.run(lines)
        assert list(zip(got.filled.tolist(), got.writes.tolist(), got.due.tolist(), strict=True)) == expected
        states.end(got)


def test_a_line_of_a_later_epoch_is_neither_read_nor_written() -> None:
    states = LineStates(2, 4, torch.device("cpu"))
    zero = torch.tensor([0])
    for epoch, filled, writes in ((5, False, True), (4, False, False), (5, True, True), (6, False, True)):
        got = states.begin(torch.tensor([[0.0, epoch, 0.8]]), zero, zero)
        assert (bool(got.filled), bool(got.writes)) == (filled, writes), epoch
        states.end(got)


def test_a_line_that_there_is_no_more_is_not_used() -> None:
    states = LineStates(2, 4, torch.device("cpu"))
    got = states.begin(torch.tensor([[2.0, 1.0, 0.8], [0.0, 1.0, 0.8]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert got.line.tolist() == [2, 1]
    assert got.writes.tolist() == [False, True]
