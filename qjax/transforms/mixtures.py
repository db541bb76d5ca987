"""Mixtures inside a matrix and between matrices: sparse outliers, two widths, few values, leaves left alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qjax import dispatch, solvers
from qjax.formats import Format, as_format
from qjax.formats.format import FULL
from qjax.operators import Columns, Diag, Pre, Sparse, Sum
from qjax.operators.operator import batched
from qjax.qarray import QArray
from qjax.solvers import bitstack as bitstack_solver
from qjax.solvers import gobo as gobo_solver
from qjax.solvers import mixed_groups as groups_solver
from qjax.solvers import nupes as nupes_solver
from qjax.solvers import outliers as outliers_solver
from qjax.statistics import fisher
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import behind_maps, quantize_with, relative_errors, report_row


def outliers(
    share: float, *, by: Literal["magnitude", "activation"] = "magnitude", store: str = "float16"
) -> Transform:
    """Keep the largest `share` of each matrix's entries in a sparse part; what follows in the chain quantizes the rest.

    Largest by |w|, or by |w| times the root mean square of its input. The leaf becomes `Sum((dense, Sparse))`, zeros in
    the dense part, of which any weight method makes `Sum((quantized, Sparse))`. LLM-MQ's sparse part is such a share in
    float16 (catalogue M13); beside INT8 a twentieth in float32 is called lossless (E28).

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1 or by not in ("magnitude", "activation"):
        raise ValueError(f"outliers: share {share} by {by!r}; give 0 to 1, by 'magnitude' or 'activation'")
    statistics = ("gram",) if by == "activation" else ()

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        (path,) = stage.targets
        core, w = float_core(path, stage.params[path], stage.uses[path])
        score = jnp.abs(w)
        if by == "activation":
            gram = behind_maps(path, core, stage, statistics)["gram"]
            score = score * jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))[..., None]
        count = max(1, round(share * math.prod(w.shape[-2:])))
        dense, sparse = batched(lambda w, s: outliers_solver.split(w, s, count, store), w.ndim - 2)(w, score)
        new = core.holding(dense.astype(core.matrix.dtype)).beside_with(sparse)
        bits = float(dispatch.bits(sparse)) / math.prod(w.shape)
        return Edit(params={path: new.leaf()}, rows={path: {"format": f"{count} {store} entries", "bits": bits}})

    return stateless(f"outliers {share:g}", "leaf", edit, Needs(statistics=statistics))


def gobo(bits: int = 3, *, threshold: float = -4.0, steps: int = 50) -> Transform:
    """One table of 2^bits values a leaf, and in float32 what its normal distribution makes unlikely (catalogue E12).

    Raises:
        ValueError: bits outside 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"gobo: {bits} bits; a table has 1 to 8")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        (path,) = stage.targets
        core, w = float_core(path, stage.params[path], stage.uses[path])
        depth = w.ndim - 2
        score = batched(lambda w: gobo_solver.unlikely(w, threshold), depth)(w)
        q = batched(lambda w, s: gobo_solver.cluster(w, s <= 0, bits, steps=steps).q, depth)(w, score)
        new, count = kept_apart(w, q, score)
        zero = jnp.zeros_like(w)
        _, error = relative_errors(w, zero, dispatch.dense(new), None)
        row = report_row(f"{2**bits} values, {count} apart", new, error, error)
        return Edit(params={path: core.holding(new).leaf()}, rows={path: row})

    return stateless(f"gobo {bits}", "leaf", edit)


def sensitive_clusters(
    fmt: Format | str,
    *,
    outliers: float = 0.004,
    sensitive: float = 0.0005,
    by: Literal["hessian", "fisher"] = "hessian",
) -> Transform:
    """A table for each output by k-means weighted with a sensitivity, single weights apart: SqueezeLLM (catalogue E11).

    `by` says whose sensitivity: "hessian", the diagonal of the Gram matrix of a leaf's inputs; "fisher", the mean
    square of the gradients of the loss that `run` was given, one batch an example. The options are those of
    `qjax.solvers.squeezellm`.

    Raises:
        ValueError: an unknown sensitivity; shares without a weight, or of all weights.
    """
    f = as_format(fmt)
    if by == "hessian":
        name = f"sensitive_clusters {f.name}"
        return quantize_with(_clustered, f, name=name, statistics=("gram",), outliers=outliers, sensitive=sensitive)
    if by != "fisher":
        raise ValueError(f"sensitive_clusters: by {by!r} is neither 'hessian' nor 'fisher'")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        assert stage.loss is not None
        place = {path: i for i, path in enumerate(stage.params)}
        if held := [path for path, leaf in stage.params.items() if dispatch.is_operator(leaf)]:
            raise ValueError(f"{held[0]}: is no array any more; put sensitive_clusters by 'fisher' first in the chain")
        squares = fisher(stage.loss, tuple(stage.params.values()), stage.inputs, per_example=False)
        params, rows = {}, {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            share = jnp.asarray(stage.uses[path].to_matrix(squares[place[path]]))
            solve = partial(solvers.squeezellm, fmt=f, outliers=outliers, sensitive=sensitive)
            op = batched(solve, w.ndim - 2)(w, share)
            before, after = relative_errors(w, dispatch.dense(solvers.rtn(w, f)), dispatch.dense(op), None)
            params[path], rows[path] = core.holding(op).leaf(), report_row(f.name, op, before, after)
        return Edit(params=params, rows=rows)

    return stateless(f"sensitive_clusters {f.name} fisher", "model", edit, Needs(loss=True))


def _clustered(w: jax.Array, gram: jax.Array, fmt: Format, outliers: float, sensitive: float) -> Sum:
    return solvers.squeezellm(w, jnp.diagonal(gram)[:, None], fmt, outliers=outliers, sensitive=sensitive)


def kept_apart(w: jax.Array, q: QArray, score: jax.Array, store: str = "float32") -> tuple[Any, int]:
    """`q` with the entries of positive score made those of w by a sparse term, and how many there are in a matrix."""
    count = int(jnp.max(jnp.sum(score > 0, axis=(-2, -1))))
    if count == 0:
        return q, 0
    rest = w - dispatch.dense(q).astype(jnp.float32)

    def term(rest: jax.Array, score: jax.Array) -> Sparse:
        return outliers_solver.split(rest, score, count, store)[1]

    return Sum((q, batched(term, w.ndim - 2)(rest, score))), count


def bitstack(depth: int, *, rank: int = 16, store: str = "float16") -> Transform:
    """A stack of `depth` one-bit layers of signs and low-rank magnitudes; any prefix is a model (catalogue E30).

    Channels are weighted by the root mean square of their inputs, which stands in front of the stack. How deep each
    leaf's stack should be under a memory budget is not decided here: `partition` by a plan gives leaves depths of their
    own.

    Raises:
        ValueError: a depth or a rank below 1.
    """
    if depth < 1 or rank < 1:
        raise ValueError(f"bitstack: depth {depth}, rank {rank}; give at least 1")
    return quantize_with(
        _stacked,
        bitstack_solver.SIGN,
        name=f"bitstack {depth}",
        statistics=("gram",),
        depth=depth,
        rank=rank,
        store=store,
    )


def _stacked(w: jax.Array, gram: jax.Array, fmt: Format, depth: int, rank: int, store: str) -> Pre:
    del fmt
    size = jnp.sqrt(jnp.diagonal(gram))
    size = size / jnp.max(size) + jnp.float32(1e-3)  # an input never seen still keeps a share
    found = bitstack_solver.decompose(size[:, None] * w, depth=depth, rank=rank)
    return Pre(Diag(1 / size), bitstack_solver.operator(found, store))


def power(fmt: Format | str) -> Transform:
    """Integers that mean powers, with the exponent of least output error for each leaf: NUPES (catalogue E23)."""
    f = as_format(fmt)
    return quantize_with(_power, f, name=f"power {f.name}", statistics=("gram",))


def _power(w: jax.Array, gram: jax.Array, fmt: Format) -> QArray:
    return nupes_solver.power(w, fmt, gram=gram).q


def mixed_groups(low: Format | str, high: Format | str, *, share: float = 0.1) -> Transform:
    """The `share` of groups of input channels with the largest range in `high`, the others in `low` (catalogue E24).

    Ranges are weighed by the mean square of the group's inputs. Both formats have the same blocks.

    Raises:
        ValueError: blocks that differ or span the whole axis, or a share outside (0, 1).
    """
    f, g = as_format(low), as_format(high)
    if f.block != g.block or f.block == FULL or not 0 < share < 1:
        raise ValueError(f"mixed_groups: {f.name}, {g.name}, share {share}; give equal blocks and a share of 0 to 1")
    name = f"mixed_groups {f.name} {g.name}"
    return quantize_with(_mixed, f, name=name, statistics=("gram",), high=g, share=share)


def _mixed(w: jax.Array, gram: jax.Array, fmt: Format, high: Format, share: float) -> Columns:
    score = groups_solver.sensitivity(w, fmt.block, gram)
    chosen = min(max(1, round(share * score.shape[0])), score.shape[0] - 1)
    first, rest = groups_solver.order(score, fmt.block, chosen)
    parts = solvers.rtn(w[first], high), solvers.rtn(w[rest], fmt)
    return Columns(parts, jnp.concatenate([first, rest]))


KEPT = "float"
"""The plan's word for a leaf that stays as it is."""


def keep_worst(fmt: Format | str, share: float = 0.1) -> Transform:
    """Plan to leave the `share` of leaves that rounding in `fmt` harms most unquantized; the plan of the rest is `fmt`.

    Harm is the relative error of a leaf's output, ‖X(W - Ŵ)‖ / ‖XW‖, on the float model's inputs. Follow it with
    `qjax.masked(qjax.rtn(fmt), planned_to_quantize)`. After Unsloth's dynamic 4-bit (catalogue E26), which leaves the
    modules of largest measured weight and activation error in 16 bits and rounds the rest to NF4.

    Raises:
        ValueError: a share outside (0, 1).
    """
    f = as_format(fmt)
    if not 0 < share < 1:
        raise ValueError(f"keep_worst: share {share}; give 0 to 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        harm = {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            gram = behind_maps(path, core, stage, ("gram",))["gram"]
            rounded = dispatch.dense(solvers.rtn(w, f))
            harm[path] = float(relative_errors(w, rounded, rounded, gram)[1])
        worst = sorted(harm, key=harm.__getitem__, reverse=True)[: max(1, round(share * len(harm)))]
        plan = {path: KEPT if path in worst else f.name for path in stage.targets}
        rows = {path: {"format": plan[path], "error_before": harm[path]} for path in stage.targets}
        return Edit(plan=plan, rows=rows)

    return stateless(f"keep_worst {f.name}", "model", edit, Needs(statistics=("gram",)))


def planned_to_quantize(path: str, use: Any, plan: Any) -> bool:
    """A selection for `qjax.masked`: leaves that the plan does not keep in float."""
    del use
    whole = path[: path.rindex("[")] if path.endswith("]") else path
    return plan.get(path, plan.get(whole)) != KEPT
