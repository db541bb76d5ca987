"""Input channels with outliers apart from the others, each part with weights and inputs in formats of its own."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qjax import dispatch, ranges, solvers
from qjax.formats import Format, as_format
from qjax.operators import Columns, Pre, Quantize
from qjax.operators.operator import batched
from qjax.solvers.channel_parts import in_parts, kept
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import behind_maps, relative_errors, report_row


def float_outliers(
    weights: Format | str = "int8_narrow_f32",
    inputs: Format | str = "int8_narrow_f32",
    *,
    threshold: float = 6.0,
    store: str = "float16",
) -> Transform:
    """Keep the input channels that reach `threshold` in float, weights as `store`; round the rest on both sides.

    LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339; catalogue G4): a scale for each output and for each token, both
    absmax/127. A channel is an outlier if any calibration token reaches the threshold in it, where the authors look at
    every batch as it comes. A leaf without outliers has one part.

    Raises:
        ValueError: a threshold that is not positive, or a store that is no float dtype.
    """
    if not threshold > 0 or not kept(store):
        raise ValueError(f"float_outliers: threshold {threshold}, store {store!r}; give a positive one, a float dtype")
    w_format, x_format = as_format(weights), as_format(inputs)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        size = _measured(stage, "absmax")
        count = int(jnp.max(jnp.sum(size >= threshold, axis=-1)))  # of stacked matrices, the same number in each
        order = jnp.argsort(size, axis=-1, stable=True).astype(jnp.int32)
        rest = size.shape[-1] - count
        parts = [(rest, w_format, None, Quantize.dynamic(x_format)), (count, store, None, None)]
        return _edit(stage, order, [p for p in parts if p[0]], f"{w_format.name}, {count} channels {store}")

    return stateless(f"float_outliers {w_format.name} {threshold:g}", "inputs", edit, Needs(statistics=("absmax",)))


def narrow_and_wide(
    low: Format | str = "int4_g128",
    high: Format | str = "int8_narrow_f32",
    *,
    count: int = 128,
    inputs: tuple[Format | str, Format | str] | None = ("int4_g128", "int8_narrow_f32"),
    method: Literal["gptq", "rtn"] = "gptq",
    clip: tuple[float, float] = (1.0, 1.0),
    damp: float = 0.01,
) -> Transform:
    """The `count` input channels with the largest mean square last and in `high`, the others before them in `low`.

    Atom (Zhao et al. 2023, arXiv:2310.19102; catalogue G17): channels sorted by their mean square, GPTQ through all of
    them in that order, and inputs in two formats along the same cut, dynamic; None leaves them in float. `clip` are the
    shares of their ranges that the narrow weights and inputs keep. The order is a gather in front of the layer, where
    the authors fold it into the layer before.

    Raises:
        ValueError: a count below 1, an unknown method; a leaf with no more inputs than `count`, by name.
    """
    formats = as_format(low), as_format(high)
    if count < 1 or method not in ("gptq", "rtn"):
        raise ValueError(f"narrow_and_wide: {count} channels by {method!r}; give at least 1, by 'gptq' or 'rtn'")
    of_weights, of_inputs = (None if share == 1.0 else ranges.shrunk(share) for share in clip)
    rounding = (None, None)
    if inputs is not None:
        rounding = Quantize.dynamic(inputs[0], of_inputs), Quantize.dynamic(inputs[1])

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        square = jnp.diagonal(_measured(stage, "gram"), axis1=-2, axis2=-1)
        rest = square.shape[-1] - count
        if rest < 1:
            raise ValueError(f"{stage.targets[0]}: {count} wide channels of {rest + count} leave no narrow ones")
        order = jnp.argsort(square, axis=-1, stable=True).astype(jnp.int32)
        parts = [(rest, formats[0], of_weights, rounding[0]), (count, formats[1], None, rounding[1])]
        label = f"{formats[0].name}, {count} channels {formats[1].name}"
        return _edit(stage, order, parts, label, damp if method == "gptq" else None)

    name = f"narrow_and_wide {formats[0].name} {formats[1].name} {count}" + ("" if method == "gptq" else " rtn")
    return stateless(name, "inputs", edit, Needs(statistics=("gram",)))


def _measured(stage: Stage, name: str) -> jax.Array:
    """A statistic of what meets the cores of a stage's targets."""
    first = stage.targets[0]
    return behind_maps(first, float_core(first, stage.params[first], stage.uses[first])[0], stage, (name,))[name]


def _edit(
    stage: Stage, order: jax.Array, parts: list[tuple[int, Any, Any, Any]], label: str, damp: float | None = None
) -> Edit:
    """Every target in these parts (size, format and range of the weights, rounding of the inputs).

    By GPTQ where `damp` is given. A single part needs no order.
    """
    sizes, formats, estimators, roundings = zip(*parts, strict=True)
    gram = None if damp is None else _measured(stage, "gram")
    params, rows = {}, {}
    for path in stage.targets:
        core, w = float_core(path, stage.params[path], stage.uses[path])
        solve = functools.partial(_solved, sizes=sizes, formats=formats, estimators=estimators, damp=damp)
        ops, nearest, new = batched(solve, w.ndim - 2)(w, jnp.broadcast_to(order, w.shape[:-1]), gram)
        bits = Columns(ops, order) if len(ops) > 1 else ops[0]
        before, after = relative_errors(w, nearest, new, gram)
        rounded = tuple(op if r is None else Pre(r, op) for op, r in zip(ops, roundings, strict=True))
        whole = Columns(rounded, bits.order) if isinstance(bits, Columns) else rounded[0]
        params[path] = core.holding(whole).leaf()
        rows[path] = report_row(label, bits, before, after)
    return Edit(params=params, rows=rows)


@functools.partial(jax.jit, static_argnames=("sizes", "formats", "estimators", "damp"))
def _solved(
    w: jax.Array, order: jax.Array, gram: Any, *, sizes: Any, formats: Any, estimators: Any, damp: float | None
) -> tuple[tuple[Any, ...], jax.Array, jax.Array]:
    """The parts, and dense: all in the first format, rounded to nearest, and the parts together."""
    if len(sizes) == 1:
        order = jnp.arange(w.shape[0], dtype=jnp.int32)
    ops = in_parts(w, order, sizes, formats, gram, ranges=estimators, damp=0.0 if damp is None else damp)
    nearest = w if kept(formats[0]) else dispatch.dense(solvers.rtn(w, formats[0]))
    if kept(formats[0]):  # a leaf of one float part is an array of the dtype it had
        ops = (ops[0].astype(jnp.float32),)
    return ops, nearest, dispatch.dense(Columns(ops, order)).astype(jnp.float32)
