"""Corrections of a narrow weight, added by the kernel that multiplies it: `Sum` and `Columns` of one large term.

The low-rank factors of LoRA, LQER and SVD branches, and input channels kept in a wider type (LLM.int8, Atom, QUIK).
Elsewhere each term is a product of its own and XLA adds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators import narrow_codes
from qjax.operators.factored import Factored
from qjax.operators.operator import Operator
from qjax.operators.packed import Packed
from qjax.operators.sparse import Sparse
from qjax.qarray import QArray

NAME = "epilogue"


def base(ops: Sequence[Any]) -> int | None:
    """Which of the terms the others correct: the packed leaf with the most inputs, else the first quantized leaf.

    None where no term is a quantized leaf.
    """
    packed = [i for i, op in enumerate(ops) if isinstance(op, Packed)]
    if packed:
        return max(packed, key=lambda i: ops[i].shape[-2])
    return next((i for i, op in enumerate(ops) if isinstance(op, QArray)), None)


def refusals(ops: Sequence[Any], tokens: int, platform: str, dtype: Any) -> dict[str, str | None]:
    """Why one kernel cannot add these terms up for x of `dtype` on a platform, or None; {} where there is no leaf."""
    place = base(ops)
    return {} if place is None else {NAME: _refuse(ops, place, tokens, platform, dtype)}


def chosen(op: Any, tokens: int, name: str | None, dtype: Any) -> bool:
    """Whether one kernel adds up the terms of a `Sum` or `Columns`: where it can and `prefer`, or where it is named.

    ValueError where it is named and cannot.
    """
    if name not in (None, NAME):
        return False
    no_leaf: dict[str, str | None] = {NAME: "no term is a quantized leaf"}
    why = (refusals(op.ops, tokens, jax.default_backend(), dtype) or no_leaf)[NAME]
    if name is not None and why is not None:
        raise ValueError(f"implementation {name!r} cannot run {type(op).__name__} {op.shape}: {why}")
    return why is None and (name is not None or prefer(op.ops))


def prefer(ops: Sequence[Any]) -> bool:
    """Whether one kernel is sooner than the products apart: not with factors, whose x @ a it would wait for.

    Apart, XLA fetches a and multiplies by it while the kernel of the weight runs.
    """
    return not any(isinstance(op, Factored) for op in ops)


def matmul(ops: Sequence[Any], inputs: Sequence[jax.Array], dtype: Any = None, interpret: bool = False) -> jax.Array:
    """The sum of inputs[i] [tokens..., K_i] through ops[i] [K_i, N], in the dtype of x or `dtype`.

    Each factor b of a correction, and what stands in front of it, x @ a, is rounded to bfloat16, the type of x; sums
    are float32. That is what the products apart lose, but for a b in a `Packed`, which is rounded here alone.
    """
    place = base(ops)
    assert place is not None  # `refusals`
    others = [_factors(op, x) for i, (op, x) in enumerate(zip(ops, inputs, strict=True)) if i != place]
    tokens = math.prod(inputs[place].shape[:-1])
    t = jnp.concatenate([t.reshape(tokens, t.shape[-1]) for t, _ in others], axis=1)
    factors = [b for _, b in others]  # not rounded here: their gradients would be
    b = factors[0] if len(factors) == 1 else jnp.concatenate([b.astype(jnp.float32) for b in factors], axis=0)
    return narrow_codes.run(inputs[place], ops[place], dtype, interpret, (t, b))


def _factors(op: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(t [tokens..., r], b [r, N]) of x through a term that `_misfit` lets pass."""
    return (dispatch.matmul(x, op.a), dispatch.dense(op.b)) if isinstance(op, Factored) else (x, dispatch.dense(op))


def _refuse(ops: Sequence[Any], place: int, tokens: int, platform: str, dtype: Any) -> str | None:
    why, leaf = narrow_codes.refuse_platform(platform), ops[place]
    if why is not None:
        return why
    if leaf.batch_shape:
        return "the weight has batch axes: take one entry at a time"
    if not isinstance(leaf, Packed) or leaf.layout not in narrow_codes.KINDS:
        how = f"packed as {leaf.layout}" if isinstance(leaf, Packed) else "not packed"
        return f"its codes are {how}: prepare it (`qjax.prepare(tree, target='tpu')`)"
    why = narrow_codes.refuse_kernel(leaf, tokens, platform, dtype)
    if why is not None:
        return why
    others = [(i, op) for i, op in enumerate(ops) if i != place]
    misfits = [f"term {i} is {what}" for i, op in others if (what := _misfit(op)) is not None]
    if misfits or not others:
        return misfits[0] if misfits else "there is no other term"
    from qjax.kernels.tpu import epilogues  # Pallas takes a second to import

    return epilogues.refuse(sum(op.rank if isinstance(op, Factored) else op.shape[-2] for _, op in others))


def _misfit(op: Any) -> str | None:
    """What a term is that is no product of two factors, or None."""
    if isinstance(op, Sparse):
        return "Sparse: to gather its inputs takes longer than to multiply without quantizing; keep whole Columns apart"
    b = op.b if isinstance(op, Factored) else op
    if isinstance(b, Packed) or not isinstance(b, Operator):
        return None
    inside = f"Factored with b a {type(b).__name__}" if b is not op else type(b).__name__
    return f"{inside}: a correction is Factored, or rows of its own, of arrays or quantized arrays"
