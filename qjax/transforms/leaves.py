"""A leaf seen by a method: the maps in front of it, and the matrix at its core.

A leaf that went through equivalences is `Pre(T1, Pre(T2, W))`: an input x meets T1 first. Methods work on the core W
[K, N] in the coordinates behind all maps, and new maps are put next to the core; so what was measured on x (a Gram
matrix, a maximum) has to be carried through the maps. `Core` holds both halves, `transport` carries the statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators import ByUse, Composed, Diag, NotAffine, Permute, Post, Pre, Shift, Sum, View
from qjax.qarray import QArray
from qjax.quantization import dequantize
from qjax.statistics import Points
from qjax.trace.uses import Use

# How a per-channel statistic follows x -> x * d; every other map mixes channels, and then only a Gram matrix can
# follow.
_SCALED_BY_SIZE = ("absmax", "mean_abs")


@dataclasses.dataclass(frozen=True)
class Core:
    """The maps in front of a leaf, outermost first, and its core: an array or operator [batch..., K, N].

    `beside`: terms added to a core that is still float (outliers taken out of it). `bias`: what is added to its
    output, [batch..., N] (the counterpart of a shift in front), or None.
    """

    maps: tuple[Any, ...]
    matrix: Any
    use: Use
    beside: tuple[Any, ...] = ()
    bias: Any = None

    @classmethod
    def of(cls, leaf: Any, use: Use) -> Core:
        op, maps = use.to_matrix(leaf), []
        while isinstance(op, Pre):
            maps.append(op.T)
            op = op.op
        bias = None
        while isinstance(op, Post) and isinstance(op.T, Shift):
            bias = op.T.offset if bias is None else bias + op.T.offset
            op = op.op
        if isinstance(op, Sum) and not dispatch.is_operator(op.ops[0]):
            return cls(tuple(maps), op.ops[0], use, op.ops[1:], bias)
        return cls(tuple(maps), op, use, bias=bias)

    def leaf(self) -> Any:
        """The leaf again, in the layout it is stored in."""
        op = Sum((self.matrix, *self.beside)) if self.beside else self.matrix
        if self.bias is not None:
            op = Post(op, Shift(self.bias))
        for m in reversed(self.maps):
            op = Pre(m, op)
        return self.use.from_matrix(op)

    def holding(self, matrix: Any) -> Core:
        return dataclasses.replace(self, matrix=matrix)

    def beside_with(self, term: Any) -> Core:
        """With one more term added to the core, which methods leave alone: the core is quantized for itself."""
        return dataclasses.replace(self, beside=(*self.beside, term))

    def behind(self, new: Any) -> Core:
        """With one more map right in front of the core (of a composed one, each of its maps)."""
        parts = new.maps if isinstance(new, Composed) else (new,)
        return dataclasses.replace(self, maps=(*self.maps, *parts))

    def adding(self, bias: Any) -> Core:
        """With one more bias [batch..., N] behind the core; None adds nothing."""
        if bias is None:
            return self
        return dataclasses.replace(self, bias=bias if self.bias is None else self.bias + bias)


def float_core(path: str, leaf: Any, use: Use) -> tuple[Core, jax.Array]:
    """The core of a leaf that is still float, as float32.

    Raises:
        ValueError: the leaf is quantized already; names it.
    """
    core = Core.of(leaf, use)
    if any(m.nonlinear for m in core.maps):
        raise ValueError(f"{path}: its input is quantized already; put weight methods before act_quantize in the chain")
    refuse_quantized(path, core.matrix)
    return core, jnp.asarray(core.matrix).astype(jnp.float32)


def refuse_quantized(path: str, matrix: Any) -> None:
    """ValueError for a core that is not a float array any more."""
    if dispatch.is_operator(matrix):
        raise ValueError(
            f"{path}: already holds {type(matrix).__name__}; a second weight method would quantize it twice "
            "(select other leaves with qjax.masked or qjax.partition)"
        )


def refuse_rounded(path: str, core: Core) -> None:
    """ValueError for a core whose input is rounded before it meets it."""
    if any(m.nonlinear for m in core.maps):
        raise ValueError(f"{path}: its input is quantized already; round the inputs of a leaf once")


def channel_ends(path: str, core: Core, statistics: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Least and largest value of each channel that meets the core, [batch..., K], from "min" and "max" of x."""
    points = Points.extremes(statistics["min"], statistics["max"])
    points = transport(path, core.maps, {"min and max": points})["min and max"]
    shape = core.matrix.shape[:-1]
    return jnp.broadcast_to(points.low[..., 0, :], shape), jnp.broadcast_to(points.high[..., 0, :], shape)


def transport(path: str, maps: tuple[Any, ...], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of x as statistics of T(x) for the maps in front of a core (Gram H of x @ M: M^T H M).

    A Gram matrix follows a map that shifts only beside "mean" and "count".

    Raises:
        ValueError: a statistic that cannot follow a map; names the leaf, the statistic and the map.
    """
    out = dict(statistics)
    for m in maps:
        out = {name: _through(path, m, name, value, out) for name, value in out.items()}
    return out


def shifting(leaf: Any, use: Use) -> bool:
    """Whether a map in front of a leaf's core shifts, so that Gram matrices need the mean to follow."""
    return any(not m.nonlinear and m.shift() is not None for m in Core.of(leaf, use).maps)


def _through(path: str, m: Any, name: str, value: Any, beside: Mapping[str, Any]) -> Any:
    if name == "count" or m.nonlinear:
        # the second moment of x before its rounding stands for that after it, as in every published GPTQ with W and A
        return value
    if isinstance(value, Points):
        return _moved(path, m, name, value)
    if name in ("gram", "cross_gram"):
        linear, c = m.linear(), m.shift()
        if linear is not None:
            value = linear.apply(jnp.swapaxes(linear.apply(value), -1, -2)).swapaxes(-1, -2)
        return value if c is None else _shifted(path, m, linear, c, name, value, beside)
    if isinstance(m, Permute):
        return m.apply(value)
    if isinstance(m, Diag) and name in _SCALED_BY_SIZE:
        return Diag(jnp.abs(m.scale)).apply(value)
    if name == "mean":  # of an affine map, the image of the mean
        return m.apply(value)
    raise ValueError(
        f"{path}: the statistic {name!r} cannot be carried through {type(m).__name__}; "
        "put the transform that needs it first in the chain, or use a Gram matrix"
    )


def _shifted(path: str, m: Any, linear: Any, c: Any, name: str, gram: Any, beside: Mapping[str, Any]) -> Any:
    """Of n rows y with the mean u: the Gram matrix of y + c, gram + n (u c^T + c u^T + c c^T)."""
    if name != "gram" or "mean" not in beside or "count" not in beside:
        raise ValueError(
            f"{path}: the statistic {name!r} can be carried through {type(m).__name__}, which shifts, only if it is "
            "'gram' and 'mean' was measured beside it"
        )
    u = beside["mean"] if linear is None else linear.apply(beside["mean"])
    c = jnp.broadcast_to(c, u.shape)
    n = jnp.asarray(beside["count"], jnp.float32)[..., None, None]
    return gram + n * (u[..., :, None] * c[..., None, :] + c[..., :, None] * (u + c)[..., None, :])


def _moved(path: str, m: Any, name: str, points: Points) -> Points:
    """Points of x as points of T(x): tokens under any map, channels' own values under one that mixes none."""
    if name in ("reservoir", "largest"):
        return Points.of(m.apply(points.x), points.weights)
    if isinstance(m, Permute):
        return Points(*(part if part.shape[-1] == 1 else m.apply(part) for part in points))
    if isinstance(m, Diag | Shift):
        k = points.low.shape[-1]
        x, low, high = (m.apply(jnp.broadcast_to(p, (*p.shape[:-1], k))) for p in (points.x, points.low, points.high))
        return Points(x, points.weights, jnp.minimum(low, high), jnp.maximum(low, high))
    raise ValueError(
        f"{path}: {name!r} tells of single channels and {type(m).__name__} mixes them; measure tokens instead "
        "(statistic='reservoir')"
    )


def materialized(leaf: Any) -> Any:
    """A leaf for many forward passes: dense wherever that loses nothing, operators only around activation quantizers.

    One compiled stage then serves layers of any mixture of formats, and no code is decoded twice.
    """
    if not dispatch.is_operator(leaf) or isinstance(leaf.op if isinstance(leaf, View) else leaf, ByUse):
        return leaf  # a tied leaf is two matrices, and dense would be one of them
    try:
        w, b = dispatch.affine(leaf)
    except NotAffine:
        return jax.tree.map(
            lambda n: dequantize(n) if isinstance(n, QArray) else n, leaf, is_leaf=lambda n: isinstance(n, QArray)
        )
    return leaf if b is not None else w
