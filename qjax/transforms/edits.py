"""Edits applied to the working copy of a model: what an equivalence, an approximation and an annotation change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators import Composed, Map, NotAffine, Pre
from qjax.trace.uses import Use
from qjax.transforms.contract import Edit, Leaves
from qjax.transforms.leaves import Core

# An equivalence may move float32 outputs by this much: max over tokens of |dy|_2 / |y|_2.
TOLERANCE = {
    jnp.dtype("float64"): 1e-10,
    jnp.dtype("float32"): 5e-5,
    jnp.dtype("bfloat16"): 3e-2,
    jnp.dtype("float16"): 4e-3,
}


class NotEquivalent(ValueError):
    """An edit that called itself an equivalence moved the stage's output."""


@dataclasses.dataclass(frozen=True)
class Working:
    """The model under edit: leaves by path, their float reference, the plan, and what stands around the leaves.

    `rewritten` names the leaves that hold other numbers for the same function of the model (`Edit.rewritten`).
    """

    params: Leaves
    reference: Leaves
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    taps: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rewritten: frozenset[str] = frozenset()


def applied(working: Working, edit: Edit, uses: Mapping[str, Use]) -> Working:
    """The working copy after an edit.

    Raises:
        ValueError: a path the stage does not hold, or an equivalence on a leaf that is not float any more.
    """
    params, reference = {**working.params, **edit.added}, {**working.reference, **edit.added}
    for path in (*edit.equivalence, *edit.rewritten, *edit.params):
        if path not in params:
            raise ValueError(f"{path}: no such leaf in this stage; it holds {sorted(working.params)}")
    for path, leaf in edit.rewritten.items():
        if params[path] is not reference[path]:
            raise ValueError(f"{path}: already approximated; put rewrites of the network before methods that quantize")
        params[path] = reference[path] = leaf
    for path, m in edit.equivalence.items():
        same = params[path] is reference[path]
        params[path] = absorbed(path, params[path], m, uses[path])
        reference[path] = params[path] if same else absorbed(path, reference[path], m, uses[path])
    params.update(edit.params)
    return dataclasses.replace(
        working,
        params=params,
        reference=reference,
        plan={**working.plan, **edit.plan},
        taps={**working.taps, **{site: _behind(working.taps.get(site), tap) for site, tap in edit.taps.items()}},
        rewritten=working.rewritten.union(edit.rewritten),
    )


def _behind(first: Any, second: Any) -> Any:
    return second if first is None else Composed((*(first.maps if isinstance(first, Composed) else (first,)), second))


def changes(before: Working, after: Working, rows: Any) -> dict[str, Any]:
    """What one block changed, as a tree that can be saved."""

    def new(a: Leaves, b: Leaves) -> dict[str, Any]:
        return {path: leaf for path, leaf in b.items() if leaf is not a.get(path)}

    return {
        "params": new(before.params, after.params),
        "reference": new(before.reference, after.reference),
        "plan": dict(after.plan),
        "taps": dict(after.taps),
        "rewritten": sorted(after.rewritten),
        "rows": rows,
    }


def restored(working: Working, saved: Mapping[str, Any]) -> tuple[Working, list[dict[str, Any]]]:
    """The working copy after a saved block, and the block's rows."""
    working = Working(
        params={**working.params, **saved["params"]},
        reference={**working.reference, **saved["reference"]},
        plan=saved["plan"],
        taps=saved["taps"],
        rewritten=frozenset(saved["rewritten"]),
    )
    return working, saved["rows"]


def absorbed(path: str, leaf: Any, m: Any, use: Use) -> Any:
    """The leaf W as `Pre(T, T^-1 W)`: the same function of x, its numbers in the coordinates behind T.

    What T shifts comes back as a bias behind the core: T(x) = x + c gives `Pre(T, Post(W, Shift(-c W)))`.

    Raises:
        ValueError: the leaf's core is quantized, so T^-1 W is not exact.
    """
    core = Core.of(leaf, use)
    if dispatch.is_operator(core.matrix):
        raise ValueError(
            f"{path}: {type(m).__name__} is an equivalence and the leaf already holds {type(core.matrix).__name__}; "
            "put equivalences before the methods that quantize"
        )
    if core.beside:
        raise ValueError(
            f"{path}: {type(m).__name__} is an equivalence and part of the leaf stands beside its core; "
            "put equivalences before `outliers`"
        )
    dtype, w = core.matrix.dtype, core.matrix.astype(jnp.float32)
    for part in m.maps if isinstance(m, Composed) else (m,):
        try:
            w, bias = countered(part, w)
        except NotAffine as e:
            raise ValueError(f"{path}: {type(part).__name__} has no inverse and cannot be an equivalence") from e
        core = core.behind(part).adding(bias)
    return core.holding(w.astype(dtype)).leaf()


@jax.jit
def countered(m: Map, w: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The matrix and bias that behind m are w."""
    return Pre(m.inverse(), w).affine()


def assert_equivalent(name: str, fn: Callable[[Any, Any], Any], before: Any, after: Any, x: Any) -> None:
    """Run the stage before and after on one input and compare, token by token.

    Raises:
        NotEquivalent: the outputs differ by more than the tolerance of their dtype.
    """
    for a, b in zip(jax.tree.leaves(fn(before, x)), jax.tree.leaves(fn(after, x)), strict=True):
        if not (isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jnp.floating) and a.ndim):
            continue
        ref, new = a.astype(jnp.float32), b.astype(jnp.float32)
        size = jnp.linalg.norm(ref, axis=-1)
        off = float(jnp.max(jnp.linalg.norm(new - ref, axis=-1) / jnp.maximum(size, 1e-30 + 1e-6 * jnp.max(size))))
        if not off <= TOLERANCE[a.dtype]:
            raise NotEquivalent(
                f"{name}: outputs moved by {off:.1e} of their norm, allowed {TOLERANCE[a.dtype]:.0e} ({a.dtype})"
            )
