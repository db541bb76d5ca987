"""Bits for each leaf under a budget, by what the model's predictions lose: the plan of a partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch, solvers
from qjax.accounting import bits
from qjax.allocate import least_cost
from qjax.formats import Format, as_format
from qjax.metrics import kl_divergence
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.leaves import float_core


def budget(formats: Sequence[Format | str], bits_per_weight: float) -> Transform:
    """Write in the plan, for each leaf, the name of one of the formats, so that all take at most so many bits a weight.

    A leaf's sensitivity to a format is KL(float || leaf alone rounded to nearest) of the model's outputs, taken as
    logits along their last axis, mean over positions and calibration batches. Of all plans within the budget (bits of
    codes, scales and offsets over the number of weights) the one whose sensitivities add up to the least.

    ZeroQ (Cai et al. 2020, arXiv:2001.00281, section 3.2), whose calibration batches are `qjax.reconstruct.distill`'s;
    catalogue B17. It runs the model once for every leaf, format and batch.

    Raises:
        ValueError: fewer than two formats, outputs that are no array of logits, or a budget below the narrowest.

    Example:
        >>> import qjax
        >>> formats = ("int8", "int2")
        >>> recipe = qjax.chain(qjax.transforms.budget(formats, 6.0),
        ...                     qjax.partition({f: qjax.rtn(f) for f in formats}, lambda path, use, plan: plan[path]))
        >>> x = jax.random.normal(jax.random.key(0), (32, 16))
        >>> params = {"a": jnp.eye(16) + 0.1 * x[:16], "b": 0.01 * x[16:]}
        >>> q, report = qjax.run(recipe, lambda p, x: x @ p["a"] + x @ p["b"], params, [x])
        >>> dict(report.plan)
        {'a': 'int8', 'b': 'int2'}
    """
    candidates = tuple(map(as_format, formats))
    if len(candidates) < 2:
        raise ValueError(f"budget: {len(candidates)} formats; give at least two to choose from")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        assert stage.fn is not None
        fn = stage.fn

        @jax.jit
        def outputs(leaves: tuple[Any, ...], x: Any) -> jax.Array:
            return fn(leaves, x)

        @jax.jit
        def lost(leaves: tuple[Any, ...], x: Any, true: jax.Array) -> jax.Array:
            return jnp.mean(kl_divergence(fn(leaves, x), true))

        whole = tuple(stage.params.values())
        truth = [outputs(whole, x) for x in stage.inputs]
        if not all(isinstance(y, jax.Array) and y.ndim for y in truth):
            raise ValueError("budget: the model's output is no array of logits, whose divergence could be measured")
        costs, sizes, weights = [], [], 0
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            weights += w.size
            row, taken = [], []
            for f in candidates:
                q = solvers.rtn(w, f)
                now = core.holding(dispatch.dense(q).astype(core.matrix.dtype)).leaf()
                leaves = tuple({**stage.params, path: now}.values())
                row.append(np.mean([float(lost(leaves, x, y)) for x, y in zip(stage.inputs, truth, strict=True)]))
                taken.append(bits(q))
            costs.append(row)
            sizes.append(taken)
        chosen = least_cost(np.array(costs), np.array(sizes), int(bits_per_weight * weights))
        paid = [float(cost[k]) for cost, k in zip(costs, chosen, strict=True)]
        plan = {path: candidates[k].name for path, k in zip(stage.targets, chosen.tolist(), strict=True)}
        rows = {path: {"format": plan[path], "error_before": cost} for path, cost in zip(plan, paid, strict=True)}
        return Edit(plan=plan, rows=rows)

    names = "|".join(f.name for f in candidates)
    return stateless(f"budget {names} {bits_per_weight:g}", "model", edit)
