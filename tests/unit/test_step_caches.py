"""The formulas of caching across steps against plain computations in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from cache.features.steps.accumulated import POLYNOMIALS, AccumulatedGate, evaluate, fit_polynomial
from cache.features.steps.affine import RunningAffine, apply_affine, fit_affine
from cache.features.steps.contract import Action, Hold, check_schedule, of_computed, relative_l1, weighted
from cache.features.steps.first_block import FirstBlockGate
from cache.features.steps.interval import every
from cache.features.steps.magnitude import magnitude_ratios, magnitude_schedule, nearest
from cache.features.steps.partition import distances, dynamic_schedule, partition
from cache.features.steps.profiled import block_change, quietest_range
from cache.features.steps.rectified import error_schedule, rectify
from cache.features.steps.router import RouterTable, mixed, route, router_loss
from cache.features.steps.taylor import Taylor

C, S, R = Action


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def letters(schedule: tuple[Action, ...]) -> str:
    return "".join("csr"[action] for action in schedule)


def test_contract() -> None:
    assert letters(of_computed(4, [0, 2], S)) == "cscs"
    for wrong in ((), (R, C)):
        with pytest.raises(ValueError):
            check_schedule(wrong)
    now, before = drawn(3, 2, 5), drawn(3, 2, 5, seed=1)
    plain = [float((n - b).abs().sum() / b.abs().sum()) for n, b in zip(now, before, strict=True)]
    assert relative_l1(now, before).tolist() == pytest.approx(plain, rel=1e-12)
    assert Hold().weights((4, 2), 7) == (1.0, 0.0)
    history, weights = drawn(2, 3, 4, 4), drawn(2, 3, seed=2)
    pairs = zip(weights, history, strict=True)
    plain_sum = torch.stack([sum(w * h for w, h in zip(ws, hs, strict=True)) for ws, hs in pairs])
    torch.testing.assert_close(weighted(history, weights), plain_sum)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"interval": 3}, "csscsscssc"),
        ({"interval": 1}, "cccccccccc"),
        ({"interval": 3, "first": 3}, "cccsscsscs"),
        ({"interval": 20, "last": 2}, "cssssssscc"),
    ],
)
def test_interval(options: dict[str, int], expected: str) -> None:
    assert letters(every(10, instead=S, **options)) == expected


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [(0,), (3, 0), (4, 3, 1), (9, 7, 6, 2), (9, 7, 6, 2, 1)])
def test_taylor_is_the_series_of_divided_differences(order: int, steps: tuple[int, ...]) -> None:
    """Against the recursion spelled out: at each result, the factors from the ones kept at the result before."""
    values = {step: drawn(2, 3, seed=step) for step in steps}
    factors: list[torch.Tensor] = []
    last = None
    for step in sorted(steps):
        fresh = [values[step]]
        for m in range(min(order, len(factors))):
            assert last is not None
            fresh.append((fresh[m] - factors[m]) / (step - last))
        factors, last = fresh, step
    at = steps[0] + 2.5
    plain = sum(f * 2.5**m / math.factorial(m) for m, f in enumerate(factors))
    ours = Taylor(order=order).weights(steps, at)
    assert len(ours) == len(steps)
    assert sum(ours) == pytest.approx(1.0)
    torch.testing.assert_close(sum(w * values[s] for w, s in zip(ours, steps, strict=True)), plain)


def test_taylor_of_a_line_is_exact() -> None:
    assert Taylor(order=1).weights((6, 2), 9) == pytest.approx((1.75, -0.75))
    with pytest.raises(ValueError):
        Taylor(order=4)


def test_polynomials() -> None:
    for polynomial in POLYNOMIALS.values():
        assert evaluate(polynomial, 0.13) == pytest.approx(float(np.poly1d(polynomial)(0.13)), rel=1e-9)
    x = [0.01 * k for k in range(1, 20)]
    wanted = POLYNOMIALS["mochi"]
    assert fit_polynomial(x, [evaluate(wanted, v) for v in x]) == pytest.approx(wanted, rel=1e-5)
    y = [math.sin(9 * v) for v in x]
    matrix = np.vander(np.array(x), 3)
    assert fit_polynomial(x, y, 2) == pytest.approx(np.linalg.lstsq(matrix, np.array(y), rcond=None)[0], rel=1e-9)


def test_accumulated_gate() -> None:
    """p(d) = 2 d. The measured sum plus the stand-in for the step that is decided stays below the threshold."""
    gate = AccumulatedGate(steps=9, threshold=1.0, polynomial=(2.0, 0.0), first=2, last=1)
    taken = []
    for step, distance in enumerate([math.inf, 0.2, 0.1, 0.1, 0.3, 0.6, 0.05, 0.0, 0.0]):
        taken.append(gate.action(step))
        gate.observe(distance)
    # step 2: 0 + 0.4; 3: 0.2 + 0.2; 4: 0.4 + 0.2; 5: 1.0 + 0.6 computes; 6: 0 + 1.2 computes; 7: 0 + 0.1; 8: the last
    assert letters(tuple(taken)) == "ccrrrccrc"


def test_first_block_gate() -> None:
    gate = FirstBlockGate(steps=8, threshold=0.1, most=2)
    taken = []
    for step, distance in enumerate([math.nan, 0.05, 0.2, 0.0, 0.02, 0.03, 0.04, 0.0]):
        taken.append(gate.action(step))
        gate.observe(distance)
    assert letters(tuple(taken)) == "csscsscc"  # 3: 0.2 > 0.1; 6: after two in a row; 7: the last


def test_magnitude_ratios_and_nearest() -> None:
    residuals = [drawn(2, 3, 4, seed=k) for k in range(3)]
    plain = [1.0]
    for before, now in itertools.pairwise(residuals):
        tokens = zip(before.reshape(-1, 4), now.reshape(-1, 4), strict=True)
        plain.append(np.mean([float(n.norm() / b.norm()) for b, n in tokens]))
    assert magnitude_ratios(residuals) == pytest.approx(plain, rel=1e-7)
    assert nearest((1.0, 2.0, 3.0), 5) == (1.0, 1.0, 2.0, 3.0, 3.0)  # 0.5 and 1.5 round to even
    assert nearest((1.0, 2.0, 3.0), 1) == (3.0,)


def test_magnitude_schedule() -> None:
    ratios = (1.0, 0.9, 0.99, 0.98, 0.99, 1.0, 1.0, 1.0, 1.0, 0.5)
    # retention 0.2: steps 0 and 1. 2: .01; 3: .01 + .0298; 4: + .0395 > .06 computes; 5 to 7: 0; 8: a fourth computes
    assert letters(magnitude_schedule(ratios)) == "ccrrcrrrcc"


def test_partition_is_the_best_one() -> None:
    """Against all partitions."""
    distance = distances([drawn(5, seed=k).cumsum(0) * (1 + k) for k in range(8)])
    for groups, (shortest, longest) in itertools.product(range(1, 9), [(1, 8), (1, 3), (2, 4)]):
        best = (math.inf, ())
        for cuts in itertools.combinations(range(1, 8), groups - 1):
            heads = (0, *cuts)
            lengths = [b - a for a, b in itertools.pairwise((*heads, 8))]
            if all(shortest <= n <= longest for n in lengths):
                cost = sum(distance[h][h + i] for h, n in zip(heads, lengths, strict=True) for i in range(n))
                best = min(best, (cost, heads))
        if best[1]:
            assert partition(distance, groups, shortest=shortest, longest=longest) == best[1]
        else:
            with pytest.raises(ValueError):
                partition(distance, groups, shortest=shortest, longest=longest)
    assert dynamic_schedule(distance, 2, instead=R).count(C) == 4
    plain = [[float((drawn(3, seed=a) - drawn(3, seed=b)).abs().sum()) for b in range(2)] for a in range(2)]
    torch.testing.assert_close(torch.tensor(distances([drawn(3, seed=k) for k in range(2)])), torch.tensor(plain))


def test_affine() -> None:
    true, cached = drawn(3, 2, 4, 4), drawn(3, 2, 4, 4, seed=1)
    cached[:, 1] = 0.5  # a constant channel: the offset alone
    a, b = fit_affine(true, cached)
    x, y = cached[:, 0].flatten(), true[:, 0].flatten()
    plain = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution.flatten()
    torch.testing.assert_close(torch.stack([a[0], b[0]]), plain)
    assert (float(a[1]), float(b[1])) == pytest.approx((1.0, float(true[:, 1].mean()) - 0.5))
    torch.testing.assert_close(apply_affine(cached, a, b)[1, 0], a[0] * cached[1, 0] + b[0])


def test_running_affine_learns_a_row_at_a_time() -> None:
    running = RunningAffine(4, 2, decay=0.5)
    rows = torch.tensor([2, 0])
    assert [t.tolist() for t in running.correction(rows)] == [[[1.0, 1.0]] * 2, [[0.0, 0.0]] * 2]
    cached = [drawn(2, 2, 6, seed=k).float() for k in range(3)]
    true = [1.5 * c - 0.25 + 0.1 * drawn(2, 2, 6, seed=9 + k).float() for k, c in enumerate(cached)]
    for t, c in zip(true, cached, strict=True):
        running.update(rows, t, c)
    a, b = running.correction(rows)
    weights = np.repeat([0.25, 0.5, 1.0], 6)
    for row, channel in itertools.product(range(2), range(2)):
        x = np.concatenate([c[row, channel].numpy() for c in cached])
        y = np.concatenate([t[row, channel].numpy() for t in true])
        plain = np.polyfit(x, y, 1, w=np.sqrt(weights))
        assert (float(a[row, channel]), float(b[row, channel])) == pytest.approx(tuple(plain), rel=1e-3, abs=1e-4)
    running.clear(torch.tensor([2]))
    assert running.correction(rows)[0][0].tolist() == [1.0, 1.0]
    assert running.correction(rows)[0][1].tolist() != [1.0, 1.0]


def test_rectification() -> None:
    base = drawn(2, 3, 4)
    outputs = [base * (1 + 0.02 * k) + 0.01 * k for k in range(6)]
    schedule = error_schedule(outputs, 0.05)
    held, plain = outputs[0], []
    for output in outputs:
        error = float(((held - output).abs().sum((1, 2)) / output.abs().sum((1, 2))).mean())
        plain.append(error > 0.05 or not plain)
        held = output if plain[-1] else held
    assert [action is C for action in schedule] == plain
    assert set(plain) == {True, False}
    fitted, held = rectify(outputs, schedule), outputs[0]
    for step, action in enumerate(schedule):
        held = outputs[step] if action is C else held
        factor = 1.0 if action is C else float((outputs[step] * held).sum() / (held * held).sum())
        assert fitted.factors[step] == pytest.approx(factor)
        left = outputs[step] - factor * held
        torch.testing.assert_close(fitted.offsets[step], left.mean((0, 2)))


def test_profiled_blocks() -> None:
    residuals = [[drawn(2, 4, seed=10 * s + b) for b in range(2)] for s in range(3)]
    plain = [
        np.mean(
            [
                float((now[b][row] - before[b][row]).abs().sum() / before[b][row].abs().sum())
                for before, now in itertools.pairwise(residuals)
                for row in range(2)
            ]
        )
        for b in range(2)
    ]
    assert block_change(residuals) == pytest.approx(plain)
    changes, costs = (0.5, 0.1, 0.2, 0.1, 0.9), (1.0, 1.0, 2.0, 1.0, 1.0)
    assert quietest_range(changes, costs, 0.1) == (1, 2)
    assert quietest_range(changes, costs, 0.6) == (1, 4)
    assert quietest_range(changes, costs, 1.0) == (0, 5)


def test_router() -> None:
    table = route(torch.tensor([[0.0, 0.0], [0.9, 0.05], [0.05, 0.05], [0.0, 0.5]]))
    assert letters(table.schedule) == "csrc"
    assert letters(RouterTable(on=((True,), (False,), (True,))).schedule) == "crc"
    with pytest.raises(ValueError):
        RouterTable(on=((True, False),))
    fresh, cached, r = drawn(3), drawn(3, seed=1), torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(mixed(fresh, cached, r), 0.3 * fresh + 0.7 * cached)
    loss = router_loss(
        [torch.tensor(2.0), torch.tensor(3.0)],
        [0.5, 2.0],
        torch.tensor([[1.0, 0.5], [0.2, 0.1]]),
        torch.tensor([1.0, 3.0]),
        0.1,
    )
    assert float(loss) == pytest.approx(0.5 * 2 + 2 * 3 + 0.1 * (1.2 * 1 + 0.6 * 3))
