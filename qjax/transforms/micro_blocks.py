"""MicroScopiQ: outliers at twice the bits, paid for by pruned weights beside them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch, solvers
from qjax.formats import FULL, Format, as_format
from qjax.operators.operator import batched
from qjax.solvers import gptq
from qjax.solvers import pruned_for_outliers as solver
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import behind_maps, relative_errors, report_row
from qjax.transforms.mixtures import kept_apart
from qjax.transforms.weights import damping_warnings


def prune_for_outliers(
    fmt: Format | str, wide: Format | str, *, deviations: float = 3.0, damp: float = 0.01
) -> Transform:
    """Round weights to `fmt` as GPTQ does, outliers of each block to `wide`, and prune one weight for each of them.

    Outliers lie beyond `deviations` standard deviations of their block of `fmt`; in each block of `wide`, a micro-block
    of a few weights, at most half are outliers and as many of the least important others become 0. An accelerator
    stores an outlier's second half in the place of a pruned weight; here the leaf is `Sum((QArray, Sparse))`, and the
    outliers are counted as they are stored, in bfloat16 beside their two indices.

    MicroScopiQ (arXiv:2411.05282; catalogue G29).

    Raises:
        ValueError: deviations that are not positive, formats with an offset or without blocks, micro-blocks that do not
            divide the blocks; a leaf whose inputs the blocks do not divide, by name.
    """
    f, far = as_format(fmt), as_format(wide)
    if not deviations > 0:
        raise ValueError(f"prune_for_outliers: beyond {deviations} standard deviations; give a positive number")
    if f.offset or far.offset or FULL in (f.block, far.block) or far.block < 2 or f.block % far.block:
        raise ValueError(
            f"prune_for_outliers: {f.name} with outliers in {far.name}; give formats without offset, the blocks of the "
            "second at least 2 and dividing those of the first, such as int4_g64_floor_e8m0 and fp8_e4m3_g8_floor_e8m0"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        cores = {path: float_core(path, stage.params[path], stage.uses[path]) for path in stage.targets}
        first = stage.targets[0]
        gram = behind_maps(first, cores[first][0], stage, ("gram",))["gram"]
        if gram.shape[-1] % f.block:
            raise ValueError(f"{first}: blocks of {f.block} do not divide its {gram.shape[-1]} inputs; give others")
        factored = batched(lambda gram: gptq.factor(gram, damp), gram.ndim - 2)(gram)
        warnings = damping_warnings({"factored": factored}, damp)
        params, rows = {}, {}
        for path, (core, w) in cores.items():
            solve = functools.partial(solver.prune_for_outliers, fmt=f, wide=far, deviations=deviations)
            q, values, kinds = batched(solve, w.ndim - 2)(w, factored)
            outlier = kinds == solver.OUTLIER
            whole = jnp.where(outlier, values, dispatch.dense(q).astype(jnp.float32))
            op, count = kept_apart(whole, q, outlier.astype(jnp.float32), "bfloat16")
            before, after = relative_errors(w, _nearest(w, f), dispatch.dense(op), gram)
            params[path] = core.holding(op).leaf()
            label = f"{f.name}, {count} in {far.name}"
            rows[path] = report_row(label, op, before, after) | {"warnings": warnings}
        return Edit(params=params, rows=rows)

    return stateless(f"prune_for_outliers {f.name} {far.name}", "inputs", edit, Needs(statistics=("gram",)))


def _nearest(w: jax.Array, fmt: Format) -> Any:
    return batched(lambda w: dispatch.dense(solvers.rtn(w, fmt)), w.ndim - 2)(w)
