"""Transforms of one weight: round-to-nearest, GPTQ, and a low-rank correction behind either.

The mathematics is in `qjax.solvers`; here a solver meets the leaf's layout, its statistics and the report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qjax import solvers
from qjax.dispatch import dense
from qjax.formats import Format, as_format
from qjax.operators import Factored, Sum
from qjax.qarray import QArray
from qjax.quantization import bits_per_weight, dequantize
from qjax.solvers.gptq import Factor, factor, sweep
from qjax.solvers.group_scales import GROUPS
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, float_core, transport


def rtn(fmt: Format | str, *, range: Any = None) -> Transform:
    """Round to nearest in a format, with a range estimator of `qjax.ranges` (default: the format's own rule).

    Needs no data. Catalogue E1; the baseline of every table.
    """
    f = as_format(fmt)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        (path,) = stage.targets
        core, w = float_core(path, stage.params[path], stage.uses[path])
        q = over_batch(lambda w: solvers.rtn(w, f, range=range), w.ndim)(w)
        error = relative_error(w, q, None)
        row = {"format": f.name, "bits": bits_per_weight(q), "error_before": error, "error_after": error}
        return Edit(params={path: core.holding(q).leaf()}, rows={path: row})

    return stateless(f"rtn {f.name}", "leaf", edit)


def gptq(
    fmt: Format | str,
    *,
    groups: Literal["static", "stale", "fresh"] = "static",
    order: Literal["none", "activation"] = "none",
    damp: float = 0.01,
    block: int = 128,
    range: Any = None,
    dtype: Literal["float32", "float64"] = "float32",
) -> Transform:
    """GPTQ (Frantar et al. 2022, catalogue E3) in any format; see `qjax.solvers.gptq` for the conventions.

    Leaves that share an input share the factorization of their Gram matrix, hence the scope "inputs".
    """
    f = as_format(fmt)
    if groups not in GROUPS or order not in ("none", "activation") or not damp >= 0:
        raise ValueError(
            f"gptq: groups={groups!r}, order={order!r}, damp={damp}; give one of {', '.join(GROUPS)}, "
            "'none' or 'activation', and a damping of at least 0"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        params, rows = {}, {}
        factors: dict[Any, Any] = {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            # One Gram behind one set of maps is factored once: q, k, v and gate, up.
            shared = (w.shape[:-1], *map(id, jax.tree.leaves(core.maps)))
            if shared not in factors:
                gram = transport(path, core.maps, stage.statistics[path])["gram"]
                gram = jnp.broadcast_to(gram, (*w.shape[:-1], w.shape[-2]))
                factors[shared] = gram, over_batch(lambda h: factor(h, damp, order=order, dtype=dtype), w.ndim)(gram)
            gram, factored = factors[shared]
            q, before, after = _solved(w, gram, factored, fmt=f, groups=groups, block=block, range=range)
            params[path] = core.holding(q).leaf()
            rows[path] = {
                "format": f.name,
                "bits": bits_per_weight(q),
                "error_before": float(before),
                "error_after": float(after),
                "warnings": _warnings(factored, damp),
            }
        return Edit(params=params, rows=rows)

    name = f"gptq {f.name}" + ("" if groups == "static" else f" {groups}") + ("" if order == "none" else " act-order")
    return stateless(name, "inputs", edit, Needs(statistics=("gram",)))


def low_rank(rank: int, *, scale: Literal["none", "mean_abs"] = "none") -> Transform:
    """Add the best rank-r factors of what quantization lost: LQER, or L²QER with scale="mean_abs" (catalogue F1).

    Stands behind a weight method in the chain; needs the float reference of the leaf.

    Raises:
        ValueError: a rank below 1; above the smaller side of a leaf, `run` names the leaf's shape.
    """
    if rank < 1:
        raise ValueError(f"low_rank: rank {rank}; give at least 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        (path,) = stage.targets
        use = stage.uses[path]
        core, reference = Core.of(stage.params[path], use), Core.of(stage.reference[path], use)
        w = jnp.asarray(dense(reference.matrix)).astype(jnp.float32)
        now = jnp.asarray(dense(core.matrix)).astype(jnp.float32)
        statistics = transport(path, reference.maps, stage.statistics.get(path, {}))
        weighting = statistics["mean_abs"] if scale == "mean_abs" else jnp.ones(w.shape[:-1])

        def solve(w: jax.Array, q: jax.Array, weighting: jax.Array) -> tuple[jax.Array, jax.Array]:
            return solvers.low_rank(w, q, rank, scale=weighting)

        a, b = over_batch(solve, w.ndim)(w, now, jnp.broadcast_to(weighting, w.shape[:-1]))
        new = Sum((core.matrix, Factored(a, b)))
        row = {
            "format": f"rank {rank}",
            "bits": bits_per_weight(new),
            "error_before": relative_error(w, core.matrix, None),
            "error_after": relative_error(w, new, None),
        }
        return Edit(params={path: core.holding(new).leaf()}, rows={path: row})

    needs = Needs(statistics=("mean_abs",) if scale == "mean_abs" else ())
    return stateless(f"low_rank {rank}" + ("" if scale == "none" else " scaled"), "leaf", edit, needs)


@functools.partial(jax.jit, static_argnames=("fmt", "groups", "block", "range"))
def _solved(
    w: jax.Array, gram: jax.Array, factored: Factor, *, fmt: Format, groups: Any, block: int, range: Any
) -> tuple[QArray, jax.Array, jax.Array]:
    """The quantized matrices, and the relative errors of rounding to nearest and of the result."""

    def one(w: jax.Array, factored: Factor) -> tuple[QArray, QArray]:
        return sweep(w, factored, fmt, groups=groups, block=block, range=range)[0], solvers.rtn(w, fmt, range=range)

    q, nearest = over_batch(one, w.ndim)(w, factored)
    return q, *_relative_errors(w, (dequantize(nearest), dequantize(q)), gram)


def relative_error(w: jax.Array, op: Any, gram: jax.Array | None) -> float:
    """sqrt(tr(E^T H E) / tr(W^T H W)), E = W - op: relative error of the leaf's output; of its weights without H."""
    return float(_relative_errors(w, (dense(op),), gram)[0])


@jax.jit
def _relative_errors(w: jax.Array, approximations: tuple[jax.Array, ...], gram: jax.Array | None) -> list[jax.Array]:
    w = w.astype(jnp.float32)
    each = jnp.stack([w, *(w - a.astype(jnp.float32) for a in approximations)])
    # One product for all: [3, ..., K, N] against H.
    moved = each if gram is None else jnp.einsum("...ij,a...jn->a...in", gram, each)
    whole, *parts = jnp.sum(each * moved, axis=tuple(range(1, each.ndim)))
    return [jnp.sqrt(part / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny)) for part in parts]


def over_batch(fn: Callable[..., Any], ndim: int) -> Callable[..., Any]:
    """A function of one matrix, over the batch axes (experts, stacked layers) of a leaf with `ndim` axes."""
    for _ in range(ndim - 2):
        fn = jax.vmap(fn)
    return fn


def _warnings(factored: Factor, damp: float) -> tuple[str, ...]:
    out = []
    if bool(jnp.any(factored.fallback)):
        out.append("its Gram matrix is not positive definite at any damping tried: rounded to nearest")
    elif float(jnp.max(factored.damp)) > damp * 1.01:
        out.append(f"damping raised from {damp:g} to {float(jnp.max(factored.damp)):.3g}")
    if dead := int(jnp.sum(factored.dead)):
        out.append(f"{dead} input channels were zero in every calibration token; their weights are set to zero")
    return tuple(out)
