"""One choice a layer: the Pareto front and the budget against all choices, the evolution against its best."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import allocate
from qjax.metrics import kl_divergence

RNG = np.random.default_rng(0)
COSTS, SIZES = RNG.exponential(size=(6, 3)), RNG.integers(1, 9, (6, 3))
ALL = np.array(list(itertools.product(range(3), repeat=6)))
total_cost = np.take_along_axis(COSTS[None], ALL[..., None], 2).sum((1, 2))
total_size = np.take_along_axis(SIZES[None], ALL[..., None], 2).sum((1, 2))


def test_the_front_is_what_no_choice_beats():
    sizes, costs, choices = allocate.pareto_front(COSTS, SIZES)
    beaten = [np.any((total_size <= s) & (total_cost < c - 1e-12)) for s, c in zip(sizes, costs, strict=True)]
    assert not any(beaten) and np.all(np.diff(sizes) > 0) and np.all(np.diff(costs) < 0)
    for size in range(total_size.min(), total_size.max() + 1):
        chosen = allocate.least_cost(COSTS, SIZES, size)
        assert SIZES[range(6), chosen].sum() <= size
        assert COSTS[range(6), chosen].sum() == pytest.approx(total_cost[total_size <= size].min())
    for s, c, choice in zip(sizes, costs, choices, strict=True):
        assert SIZES[range(6), choice].sum() == s and COSTS[range(6), choice].sum() == pytest.approx(c)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: allocate.least_cost(COSTS, SIZES, 0), "no choice is within 0"),
        (lambda: allocate.pareto_front(COSTS, SIZES[:3]), "give .layers, options. twice"),
        (lambda: allocate.pareto_front(COSTS, SIZES * 1.0), "sizes must be integers"),
        (lambda: allocate.pareto_front(np.full_like(COSTS, np.nan), SIZES), "costs finite"),
        (lambda: allocate.evolve(len, 0, 3, jax.random.key(0)), "give positive sizes"),
        (lambda: allocate.evolve(len, 2, 3, jax.random.key(0), mutated=40), "at most as many children"),
        (lambda: qjax.transforms.budget(["int8"], 6), "at least two"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_evolution_finds_the_best_of_1679616_and_scores_nothing_twice():
    """Of 6^8 choices one is right; the search may score 945."""
    right = np.random.default_rng(1).integers(0, 6, 8)
    seen = []

    def score(choice):
        seen.append(tuple(choice.tolist()))
        return float(np.sum((choice - right) ** 2))

    best, least = allocate.evolve(score, 8, 6, jax.random.key(2))
    assert least == 0 and best.tolist() == right.tolist()
    assert len(set(seen)) == len(seen) <= 21 * 45
    again, _ = allocate.evolve(lambda c: float(np.sum((c - right) ** 2)), 8, 6, jax.random.key(2))
    assert again.tolist() == best.tolist()
    small, _ = allocate.evolve(lambda c: float(c.sum()), 1, 2, jax.random.key(0))  # fewer choices than the population
    assert small.tolist() == [0]


def test_a_budget_is_the_least_sum_of_divergences():
    """The plan of three matrices in three formats against all 27 plans, by sensitivities computed here."""
    formats, limit = ("int8_f32", "int4_f32", "int2_f32"), 5.0
    rng = np.random.default_rng(3)
    p = {n: jnp.asarray(rng.normal(size=(16, 16)) * s, jnp.float32) for n, s in (("a", 0.5), ("b", 0.25), ("c", 0.02))}
    x = [jnp.asarray(rng.normal(size=(32, 16)), jnp.float32) for _ in range(2)]

    def model(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + x @ p["c"]

    recipe = qjax.chain(
        qjax.transforms.budget(formats, limit),
        qjax.partition({f: qjax.rtn(f) for f in formats}, lambda path, use, plan: plan[path]),
    )
    q, report = qjax.run(recipe, model, p, x, schedule="whole")
    costs, sizes = np.zeros((3, 3)), np.zeros((3, 3), int)
    for i, name in enumerate(p):
        for k, f in enumerate(formats):
            rounded = qjax.quantize(p[name], f)
            lost = [kl_divergence(model({**p, name: qjax.dequantize(rounded)}, b), model(p, b)).mean() for b in x]
            costs[i, k], sizes[i, k] = np.mean(lost), qjax.bits_per_weight(rounded) * 256
    plans = np.array(list(itertools.product(range(3), repeat=3)))
    fits = sizes[range(3), plans].sum(1) <= limit * 3 * 256
    best = min(plans[fits].tolist(), key=lambda plan: costs[range(3), plan].sum())
    assert [report.plan[name] for name in p] == [qjax.as_format(formats[k]).name for k in best]
    assert len({*best}) > 1 and [qjax.bits_per_weight(q[name]) * 256 for name in p] == list(sizes[range(3), best])
