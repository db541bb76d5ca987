"""Rules of convolutions (a kernel is a matrix over patches) and ragged products (a matrix for each run of rows)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from qjax import dispatch
from qjax.operators import atoms
from qjax.operators.operator import NotAffine, NotLinear
from qjax.trace.interpreter import Rule, Tape
from qjax.trace.leaf import Leaf
from qjax.trace.meeting import Meeting, axes_of, digits


def conv(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """K is the kernel's window and input channels, in the stored order; tokens are the output positions."""
    x, leaf = inputs
    if not isinstance(leaf, Leaf) or isinstance(x, Leaf):
        return None
    met = _conv_meeting(eqn, x, leaf)
    if leaf.view is None:
        tape.use(met)
        return tape.bind(eqn, [x, leaf.value])
    try:
        kernel = leaf.view.dense().astype(leaf.dtype)
    except (NotAffine, NotLinear):
        if met.flaw:
            raise
        kernel = None
    tape.use(met)
    if kernel is not None:
        return tape.bind(eqn, [x, kernel])
    spec = eqn.params["dimension_numbers"]
    inner = (spec.rhs_spec[1], *spec.rhs_spec[2:])
    patches = _patches(eqn, x, [leaf.shape[i] for i in inner])
    contract = (inner, tuple(range(patches.ndim - len(inner), patches.ndim)))
    y = leaf.view.dot(patches, contract, dtype=eqn.params["preferred_element_type"])
    if y is None:
        return None
    out = eqn.outvars[0].aval  # y is [batch, positions..., channels]
    order = {spec.out_spec[0]: 0, spec.out_spec[1]: y.ndim - 1, **{d: 1 + i for i, d in enumerate(spec.out_spec[2:])}}
    return [jnp.transpose(y, [order[d] for d in range(y.ndim)]).astype(out.dtype)]


def _conv_meeting(eqn: Any, x: Any, leaf: Leaf) -> Meeting:
    p, spec = eqn.params, eqn.params["dimension_numbers"]
    inner = (spec.rhs_spec[1], *spec.rhs_spec[2:])
    pieces = digits(leaf, inner)
    contract, outputs = axes_of(pieces), axes_of(digits(leaf, spec.rhs_spec[:1]))
    flaw = ""
    if p["feature_group_count"] != 1:
        depthwise = leaf.shape[spec.rhs_spec[1]] == 1
        flaw = "a depthwise convolution" if depthwise else "a grouped convolution"
    elif p["batch_group_count"] != 1:
        flaw = "a convolution with batch groups"
    elif set(contract) & set(outputs) or leaf.source.part:
        flaw = "its kernel is a slice of the leaf"
    out = eqn.outvars[0].aval.shape
    tokens = math.prod(n for d, n in enumerate(out) if d != spec.out_spec[1])

    def matrix() -> Any:
        patches = _patches(eqn, x, [leaf.shape[i] for i in inner])
        lead = patches.shape[: patches.ndim - len(inner)]
        cut = patches.reshape(*lead, *(n for *_, n in pieces))
        order = (*range(len(lead)), *(len(lead) + k for k in atoms.by_operator(list(pieces))))
        return jnp.transpose(cut, order).reshape(*lead, -1)

    window = tuple((k, str(p[k])) for k in ("window_strides", "padding", "lhs_dilation", "rhs_dilation"))
    shape = tuple(eqn.invars[1].aval.shape)
    return Meeting(
        leaf, eqn, x, (), contract, outputs, _positions(eqn), matrix, ("conv", window, pieces, shape), tokens, flaw=flaw
    )


def _positions(eqn: Any) -> tuple[int, ...]:
    """Axes of the rows of `_patches`: the batch and the output positions."""
    return tuple(range(len(eqn.outvars[0].aval.shape) - 1))


def _patches(eqn: Any, x: Any, window: Sequence[int]) -> Any:
    """[batch, positions..., channels, window...] of a convolution's input."""
    p, spec = eqn.params, eqn.params["dimension_numbers"]
    x = jnp.transpose(x, spec.lhs_spec)
    patches = lax.conv_general_dilated_patches(
        x,
        filter_shape=window[1:],
        window_strides=p["window_strides"],
        padding=p["padding"],
        lhs_dilation=p["lhs_dilation"],
        rhs_dilation=p["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    patches = jnp.moveaxis(patches, 1, -1)
    return patches.reshape(*patches.shape[:-1], *window)


def ragged_dot(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """Rows sorted by expert: each run of them meets its own matrix."""
    x, leaf, sizes = inputs
    if not isinstance(leaf, Leaf) or isinstance(x, Leaf) or isinstance(sizes, Leaf):
        return None
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, _) = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    if lb or len(groups) != 1 or len(lc) != 1 or len(x.shape) != 2:
        return None
    outer = [i for i in range(leaf.ndim) if i not in (*rc, *groups)]
    batch, contract, outputs = (axes_of(digits(leaf, dims)) for dims in (groups, rc, outer))
    rows = 1 - lc[0]
    flaw = "" if not leaf.source.part and len(batch) == 1 else "its experts are a slice of the leaf"
    met = Meeting(
        leaf,
        eqn,
        x,
        batch,
        contract,
        outputs,
        (rows,),
        lambda: jnp.moveaxis(x, rows, 0),
        ("ragged", lc[0], id(sizes)),
        x.shape[rows],
        groups=sizes,
        flaw=flaw,
    )
    if leaf.view is None:
        tape.use(met)
        return tape.bind(eqn, [x, leaf.value, sizes])
    tape.use(met)
    as_stored = leaf.view.live == atoms.whole(leaf.view.op.shape) and (lc, rc, groups) == ((1,), (1,), (0,))
    try:
        if as_stored:
            return [dispatch.ragged_dot(x, leaf.view.op, sizes, dtype=eqn.outvars[0].aval.dtype)]
        return tape.bind(eqn, [x, leaf.view.dense().astype(leaf.dtype), sizes])
    except (NotAffine, NotLinear):
        pass
    return _one_by_one(eqn, x, leaf, sizes, groups[0], rc[0], lc[0])


def _one_by_one(eqn: Any, x: Any, leaf: Leaf, sizes: Any, group: int, inner: int, x_inner: int) -> list[Any] | None:
    """Every expert on all rows, its own kept: the only way to keep what its operator does to activations."""
    out, rows = eqn.outvars[0].aval, jnp.moveaxis(x, 1 - x_inner, 0)
    expert = membership(sizes, rows.shape[0])
    y = jnp.zeros(out.shape, out.dtype)
    for i in range(leaf.shape[group]):
        one = leaf.slice(group, i, 1)
        if one is None or one.view is None:
            return None
        part = one.view.dot(rows, ((inner,), (1,)), dtype=eqn.params["preferred_element_type"])
        if part is None:
            return None
        y = jnp.where(expert[i][:, None], part.reshape(out.shape).astype(out.dtype), y)
    return [y]


def membership(sizes: Any, rows: int) -> jax.Array:
    """[groups, rows] bool: which rows belong to each of consecutive groups of these sizes."""
    ends = jnp.cumsum(sizes)
    position = jnp.arange(rows, dtype=ends.dtype)[None]
    return (position < ends[:, None]) & (position >= (ends - sizes)[:, None])


RULES: dict[str, Rule] = {"conv_general_dilated": conv, "ragged_dot_general": ragged_dot}
