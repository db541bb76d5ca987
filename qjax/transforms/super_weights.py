"""The few weights a network cannot lose, kept in float beside a matrix that is rounded without them."""

from __future__ import annotations

import fnmatch
from functools import partial

import jax
import jax.numpy as jnp

from qjax import dispatch, solvers
from qjax.formats import Format, as_format
from qjax.operators.operator import batched
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.interventions import largest, largest_products
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import relative_errors, report_row
from qjax.transforms.mixtures import kept_apart


def keep_super_weights(
    fmt: Format | str, count: int = 1, *, deviations: float | None = None, among: str = "*/down"
) -> Transform:
    """Round to nearest; the `count` super weights of all targets whose path matches `among` stay in float.

    A super weight has the largest product with an input it meets in calibration. `deviations` cuts every matrix at so
    many standard deviations from its mean before it is rounded, so that no other outlier sets a scale; None does not.

    Source: super weights (Yu et al. 2024, arXiv:2411.07191, section 4); catalogue I9.

    Raises:
        ValueError: a count below 1 or beyond the weights there are, deviations that are not positive, no target that
            matches; a leaf that is quantized already, by name.
    """
    f = as_format(fmt)
    if count < 1 or (deviations is not None and not deviations > 0):
        raise ValueError(
            f"keep_super_weights: count={count}, deviations={deviations}; give at least 1, and a positive number or "
            "None"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        cores = {path: float_core(path, stage.params[path], stage.uses[path]) for path in stage.targets}
        searched = {path: core for path, core in cores.items() if fnmatch.fnmatchcase(path, among)}
        if not searched:
            raise ValueError(f"keep_super_weights: none of {', '.join(sorted(cores))} matches among={among!r}")
        if (total := sum(w.size for _, w in searched.values())) < count:
            raise ValueError(f"keep_super_weights: {count} of {total} weights that match {among!r}; give fewer")
        kept = largest(largest_products(stage, searched), count)
        nearest = partial(solvers.rtn, fmt=f)
        params, rows = {}, {}
        for path, (core, w) in cores.items():
            rounded = batched(nearest, w.ndim - 2)(w if deviations is None else _clipped(w, deviations))
            mask = kept.get(path, jnp.zeros(w.shape, bool))
            op, number = kept_apart(w, rounded, mask.astype(jnp.float32))
            before, after = relative_errors(
                w, dispatch.dense(batched(nearest, w.ndim - 2)(w)), dispatch.dense(op), None
            )
            label = f.name if number == 0 else f"{f.name}, {number} apart"
            params[path], rows[path] = core.holding(op).leaf(), report_row(label, op, before, after)
        return Edit(params=params, rows=rows)

    name = f"keep_super_weights {f.name} {count}" + ("" if deviations is None else f" {deviations:g}")
    return stateless(name, "model", edit, Needs(statistics=("absmax",)))


def _clipped(w: jax.Array, deviations: float) -> jax.Array:
    """Each matrix [..., K, N] within its mean and so many standard deviations."""
    mean = jnp.mean(w, axis=(-2, -1), keepdims=True)
    reach = deviations * jnp.std(w, axis=(-2, -1), keepdims=True)
    return jnp.clip(w, mean - reach, mean + reach)
