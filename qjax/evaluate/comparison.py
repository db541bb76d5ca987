"""Is method A better than method B? Paired, replicated, with an interval and a verdict.

Why replicates: the demo model's weights lie on the grid of the file format they were shipped in (Q4_1), so a ranking of
4-bit formats can flip when weights move inside their own cells, and one calibration sample is one draw. Replicate r
therefore moves every such weight within its cell, evaluates the float model again on those weights, and calibrates on
sample r. Both methods see the same weights, windows and sample, so the log ratio of their perplexities is paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from qjax.evaluate.scores import Model, evaluate
from qjax.trace.paths import leaves_with_paths, named_key, replace_leaves

LEVEL = 0.95


class Verdict(NamedTuple):
    """A claim "A is better than B" after n replicates.

    `mean` is the mean of log(A / B), below 0 when A is better; `low` and `high` bound its 95 % t interval. `verdict` is
    "reproduced" (the whole interval below 0), "contradicted" (above 0), or "undecided". With one replicate there is no
    interval: both ends are None and the claim is undecided.
    """

    mean: float
    low: float | None
    high: float | None
    replicates: int
    verdict: str


def verdict(log_ratios: Sequence[float]) -> Verdict:
    """Judge "A is better than B" from log(A / B) of each replicate; raises ValueError when none or not finite.

    >>> verdict([-0.11, -0.10, -0.12]).verdict, verdict([-0.1, 0.1, 0.0]).verdict, verdict([-0.1]).verdict
    ('reproduced', 'undecided', 'undecided')
    """
    values = np.asarray(log_ratios, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"a verdict needs finite log ratios, not {list(log_ratios)}")
    mean = float(values.mean())
    if values.size == 1:
        return Verdict(mean, None, None, 1, "undecided")
    width = float(scipy.stats.t.ppf((1 + LEVEL) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
    low, high = mean - width, mean + width
    word = "reproduced" if high < 0 else "contradicted" if low > 0 else "undecided"
    return Verdict(mean, low, high, int(values.size), word)


class SignTest(NamedTuple):
    """How often A's error is below B's over paired matrices; `p` is the exact two-sided binomial probability."""

    wins: int
    losses: int
    ties: int
    p: float


def sign_test(first: Mapping[str, float], second: Mapping[str, float]) -> SignTest:
    """Paired sign test on per-matrix errors {path: error}; ties are left out of the test.

    Raises ValueError when the two do not cover the same paths.

    >>> sign_test({"a": 1.0, "b": 2.0, "c": 1.0}, {"a": 2.0, "b": 3.0, "c": 1.0})
    SignTest(wins=2, losses=0, ties=1, p=0.5)
    """
    if first.keys() != second.keys():
        raise ValueError(f"errors of different matrices: {sorted(first.keys() ^ second.keys())[:5]}")
    wins = sum(first[path] < second[path] for path in first)
    losses = sum(first[path] > second[path] for path in first)
    p = float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return SignTest(wins, losses, len(first) - wins - losses, p)


def perturb(params: Any, cells: Mapping[str, Any], replicate: int) -> Any:
    """Params of replicate r: each named weight moved uniformly within a quarter of its cell to either side.

    `cells` maps a leaf's path to the width of each weight's cell on the grid it came from (`qjax.models.gguf.cells`):
    an array whose axes divide the leaf's, each entry standing for a run of weights. The offset is uniform in [-1/4,
    1/4] of the width and depends on `replicate` and the path only. Raises KeyError for a path the tree lacks and
    ValueError for a shape that does not divide the leaf's.

    >>> params = {"w": jnp.zeros((4, 2))}
    >>> moved = perturb(params, {"w": jnp.full((2, 2), 0.4)}, replicate=1)
    >>> bool(0 < jnp.max(jnp.abs(moved["w"])) <= 0.1)
    True
    """
    leaves = leaves_with_paths(params)
    moved = {}
    for path, cell in cells.items():
        if path not in leaves:
            raise KeyError(f"no leaf at {path!r}; the tree has {', '.join(list(leaves)[:3])}, ...")
        leaf = leaves[path]
        if cell.ndim != leaf.ndim or any(n % m for n, m in zip(leaf.shape, cell.shape, strict=True)):
            raise ValueError(f"{path}: cells of shape {cell.shape} do not fit a leaf of shape {leaf.shape}")
        key = named_key(jax.random.key(replicate), path)
        moved[path] = _move(leaf, jnp.asarray(cell), key)
    return replace_leaves(params, moved)


@jax.jit
def _move(leaf: jax.Array, cell: jax.Array, key: jax.Array) -> jax.Array:
    for axis, (full, short) in enumerate(zip(leaf.shape, cell.shape, strict=True)):
        cell = jnp.repeat(cell, full // short, axis=axis)
    offset = jax.random.uniform(key, leaf.shape, jnp.float32, -0.25, 0.25) * cell.astype(jnp.float32)
    return (leaf.astype(jnp.float32) + offset).astype(leaf.dtype)


class Comparison(NamedTuple):
    """`compare`'s answer: the verdict, and per replicate the three perplexities (float, first, second)."""

    verdict: Verdict
    perplexities: tuple[tuple[float, float, float], ...]


Method = Callable[[Any, Sequence[np.ndarray], jax.Array], Any]


def compare(
    first: Method,
    second: Method,
    fn: Model,
    params: Any,
    cells: Mapping[str, Any],
    calibration: Callable[[int], Sequence[np.ndarray]],
    batches: Sequence[np.ndarray],
    *,
    replicates: int = 3,
    seed: int = 0,
) -> Comparison:
    """Judge "first is better than second" on one model.

    A method maps (params, calibration batches, key) to quantized params, for instance
    `lambda p, b, k: qjax.run(recipe, model, p, b, key=k)[0]`. `fn(params, tokens)` must take what the methods return
    (`qjax.quantized(model)`). `calibration(r)` gives sample r; `batches` are the windows everything is measured on.
    At least 3 replicates for a table, 5 for a claim. Raises ValueError for fewer than one.
    """
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, not {replicates}")
    rows = []
    for replicate in range(replicates):
        weights = perturb(params, cells, replicate)
        key = jax.random.fold_in(jax.random.key(seed), replicate)
        sample = calibration(replicate)
        base = evaluate(fn, weights, batches).perplexity
        ours, theirs = (evaluate(fn, method(weights, sample, key), batches).perplexity for method in (first, second))
        rows.append((base, ours, theirs))
    return Comparison(verdict([math.log(ours / theirs) for _, ours, theirs in rows]), tuple(rows))
