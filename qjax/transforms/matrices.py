"""From a solver of one matrix to a transform of leaves: layout, statistics, batch axes and report, once for all.

A solver is a pure function of a float32 matrix `w [K, N]`, of statistics of its input by name, and of options that are
hashable. `quantize_with` makes a transform of one that returns a quantized matrix (an array's place is taken by a
`QArray` or any operator of [K, N]); `correct_with` of one that returns a term to add to a matrix quantized already.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch, solvers
from qjax.formats import Format, as_format
from qjax.operators import Sum
from qjax.operators.operator import batched
from qjax.transforms.contract import Edit, Needs, Scope, Stage, Transform, stateless
from qjax.transforms.leaves import Core, float_core, transport

# Axes of a statistic behind its batch axes; the others have one value an input channel.
_AXES = {"gram": 2, "cross_gram": 2, "count": 0}


def quantize_with(
    solve: Callable[..., Any],
    fmt: Format | str,
    *,
    name: str = "",
    statistics: tuple[str, ...] = (),
    prepare: Callable[..., Mapping[str, Any]] | None = None,
    warn: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None,
    random: bool = False,
    **options: Hashable,
) -> Transform:
    """The transform of a solver `solve(w, fmt=..., **statistics, **options) -> QArray or operator [K, N]`.

    Args:
        solve: a function of one matrix that jits and vmaps; give the same function object each time, since what it
            compiles to is kept by it and its options.
        fmt: the format; the report compares with rounding to nearest in it.
        name: of the method in the report; by default that of `solve` and the format.
        statistics: names of `qjax.statistics`, in the coordinates behind all maps of the leaf; "cross_gram" pairs the
            stream with the float one.
        prepare: (**statistics) -> the arguments of `solve` in their place; done once for leaves that share an input,
            such as a factor of their Gram matrix.
        warn: from those arguments, batch axes in front, to warnings of the report.
        random: `solve` also takes `key=`, another for each leaf and each matrix of it.
        **options: passed to `solve`.

    Example:
        >>> import jax.numpy as jnp, qjax
        >>> def halved(w, fmt):
        ...     return qjax.quantize(w / 2, fmt)
        >>> t = qjax.transforms.quantize_with(halved, "int8")
        >>> q, report = qjax.run(t, lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))])
        >>> t.name, report.rows[0]["error_after"]
        ('halved int8', 0.5)
    """
    f = as_format(fmt)
    fixed = tuple(sorted(options.items()))

    def edit(stage: Stage, key: jax.Array) -> Edit:
        params, rows = {}, {}
        inputs: dict[Any, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            # One input behind one set of maps is prepared once: q, k, v and gate, up.
            shared = (w.shape[:-1], *map(id, jax.tree.leaves(core.maps)))
            if shared not in inputs:
                found = behind_maps(path, core, stage, statistics)
                inputs[shared] = found, found if prepare is None else batched(_unpack(prepare), w.ndim - 2)(found)
            found, arguments = inputs[shared]
            keys = _keys(key, w) if random else None
            op, before, after = _quantized(w, arguments, found.get("gram"), keys, fmt=f, solve=solve, options=fixed)
            params[path] = core.holding(op).leaf()
            rows[path] = report_row(f.name, op, before, after) | {"warnings": warn(arguments) if warn else ()}
        return Edit(params=params, rows=rows)

    # A random method's key is that of its own leaf, the same however the model is walked.
    scope: Scope = "leaf" if random else "inputs"
    return stateless(name or f"{solve.__name__} {f.name}", scope, edit, Needs(statistics=statistics))


def correct_with(
    solve: Callable[..., Any],
    label: str,
    *,
    name: str = "",
    statistics: tuple[str, ...] = (),
    prepare: Callable[..., Mapping[str, Any]] | None = None,
    random: bool = False,
    **options: Hashable,
) -> Transform:
    """The transform of `solve(w, now, **statistics, **options) -> term`; the leaf becomes `Sum((now, term))`.

    `w` is the float reference and `now` what the leaf holds, both dense float32 `[K, N]`; the term is an operator
    (`Factored`, `Sparse`, a `QArray`). `label` stands in the report's column of formats; the rest as in
    `quantize_with`. Stands behind a weight method in the chain.
    """
    fixed = tuple(sorted(options.items()))

    def edit(stage: Stage, key: jax.Array) -> Edit:
        params, rows = {}, {}
        for path in stage.targets:
            use = stage.uses[path]
            core, reference = Core.of(stage.params[path], use), Core.of(stage.reference[path], use)
            w = jnp.asarray(dispatch.dense(reference.matrix)).astype(jnp.float32)
            now = jnp.asarray(dispatch.dense(core.matrix)).astype(jnp.float32)
            found = behind_maps(path, reference, stage, statistics)
            arguments = found if prepare is None else batched(_unpack(prepare), w.ndim - 2)(found)
            keys = _keys(key, w) if random else None
            term, before, after = _corrected(w, now, arguments, found.get("gram"), keys, solve=solve, options=fixed)
            new = Sum((core.matrix, term))
            params[path], rows[path] = core.holding(new).leaf(), report_row(label, new, before, after)
        return Edit(params=params, rows=rows)

    return stateless(name or f"{solve.__name__} {label}", "leaf", edit, Needs(statistics=statistics))


def behind_maps(path: str, core: Core, stage: Stage, statistics: tuple[str, ...]) -> dict[str, jax.Array]:
    """The named statistics of what meets the core, each with the core's batch axes."""
    measured = stage.statistics.get(path, {})
    helpers = [name for name in ("mean", "count") if name in measured and "gram" in statistics]
    found = transport(path, core.maps, {name: measured[name] for name in (*statistics, *helpers)})
    found = {name: found[name] for name in statistics}
    batch = core.matrix.shape[:-2]

    def spread(name: str, value: jax.Array) -> jax.Array:
        own = value.shape[value.ndim - _AXES.get(name, 1) :]
        return jnp.broadcast_to(value, (*batch, *own))

    return {name: spread(name, value) for name, value in found.items()}


def _unpack(prepare: Callable[..., Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda found: prepare(**found)


def _keys(key: jax.Array, w: jax.Array) -> jax.Array:
    """A key for each matrix."""
    return jax.random.split(key, w.shape[:-2]) if w.ndim > 2 else key


@functools.partial(jax.jit, static_argnames=("fmt", "solve", "options"))
def _quantized(
    w: jax.Array,
    arguments: Mapping[str, Any],
    gram: jax.Array | None,
    keys: jax.Array | None,
    *,
    fmt: Format,
    solve: Callable[..., Any],
    options: tuple[tuple[str, Any], ...],
) -> tuple[Any, jax.Array, jax.Array]:
    """The quantized matrices, and the relative errors of rounding to nearest and of the result."""

    def one(w: jax.Array, arguments: Mapping[str, Any], keys: jax.Array | None) -> tuple[Any, jax.Array, jax.Array]:
        op = solve(w, fmt=fmt, **arguments, **_with_key(keys), **dict(options))
        return op, dispatch.dense(solvers.rtn(w, fmt)), dispatch.dense(op)

    op, nearest, new = batched(one, w.ndim - 2)(w, arguments, keys)
    return op, *relative_errors(w, nearest, new, gram)


@functools.partial(jax.jit, static_argnames=("solve", "options"))
def _corrected(
    w: jax.Array,
    now: jax.Array,
    arguments: Mapping[str, Any],
    gram: jax.Array | None,
    keys: jax.Array | None,
    *,
    solve: Callable[..., Any],
    options: tuple[tuple[str, Any], ...],
) -> tuple[Any, jax.Array, jax.Array]:
    """The terms, and the relative errors without and with them."""

    def one(w: jax.Array, now: jax.Array, arguments: Mapping[str, Any], keys: Any) -> tuple[Any, jax.Array]:
        term = solve(w, now, **arguments, **_with_key(keys), **dict(options))
        return term, now + dispatch.dense(term).astype(jnp.float32)

    term, new = batched(one, w.ndim - 2)(w, now, arguments, keys)
    return term, *relative_errors(w, now, new, gram)


def _with_key(key: jax.Array | None) -> dict[str, jax.Array]:
    return {} if key is None else {"key": key}


def relative_errors(
    w: jax.Array, before: jax.Array, after: jax.Array, gram: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """sqrt(tr(E^T H E) / tr(W^T H W)), E = W - approximation: relative error of the output; of W itself without H."""
    each = [w, w - before.astype(jnp.float32), w - after.astype(jnp.float32)]
    if gram is None:
        sizes = jnp.stack([jnp.sum(e * e) for e in each])
    else:  # side by side, for one pass over H
        columns = solvers.column_objectives(gram, jnp.concatenate(each, axis=-1))
        sizes = jnp.stack([jnp.sum(part) for part in jnp.split(columns, 3, axis=-1)])
    sizes = jnp.maximum(sizes, 0)  # a sum of squares, but for rounding
    errors = jnp.sqrt(sizes[1:] / jnp.maximum(sizes[:1], jnp.finfo(jnp.float32).tiny))
    return errors[0], errors[1]


def report_row(label: str, op: Any, before: jax.Array, after: jax.Array) -> dict[str, Any]:
    """The report's columns of a leaf: its format in words, bits a weight, relative errors before and after."""
    bits = float(dispatch.bits(op)) / math.prod(op.shape)
    return {"format": label, "bits": bits, "error_before": float(before), "error_after": float(after)}
