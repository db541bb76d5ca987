"""Low-rank terms beside a quantized weight: behind any method, shared between leaves, or in turns with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qjax import dispatch, solvers
from qjax.formats import Format, as_format
from qjax.operators import Diag, Factored, Sum
from qjax.operators.operator import batched
from qjax.quantization import quantize
from qjax.solvers import aser as aser_solver
from qjax.solvers import glowq, loftq, whitening
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, float_core
from qjax.transforms.matrices import behind_maps, correct_with, quantize_with, relative_errors, report_row

Scale = Literal["none", "mean_abs", "diagonal", "gram"]

# What each weighting measures, and what it hands to the solver.
_WEIGHTINGS: Mapping[str, tuple[tuple[str, ...], Callable[..., Mapping[str, Any]] | None]] = {
    "none": ((), None),
    "mean_abs": (("mean_abs",), lambda mean_abs: {"scale": mean_abs}),
    "diagonal": (("gram",), lambda gram: {"scale": jnp.sqrt(jnp.diagonal(gram))}),
    "gram": (("gram",), lambda gram: {"scale": whitening.whiten(gram)}),
}


def low_rank(rank: int, *, scale: Scale = "none", store: str = "float32") -> Transform:
    """Add the best rank-r factors of what quantization lost.

    `scale` says what "best" weighs: "none" the error of the weights (LoRC, LQER: catalogue F1, F2), "mean_abs" each
    channel by its mean |x| (L2QER: F1), "diagonal" by its root mean square (QERA-approx: F3), "gram" the error of the
    output itself (QERA-exact, EoRA: F3, F5). Factors are stored as `store`, a float dtype or a format.

    Stands behind a weight method in the chain; needs the float reference of the leaf.

    Raises:
        ValueError: a rank below 1, an unknown scale; a rank above the smaller side of a leaf: `run` names its shape.
    """
    _check("low_rank", rank, scale)
    statistics, prepare = _WEIGHTINGS[scale]
    name = f"low_rank {rank}" + ("" if scale == "none" else " scaled" if scale == "mean_abs" else f" {scale}")
    return correct_with(
        _factors, f"rank {rank}", name=name, statistics=statistics, prepare=prepare, rank=rank, store=store
    )


def _factors(w: jax.Array, now: jax.Array, rank: int, store: str, scale: Any = None) -> Factored:
    return stored(*solvers.low_rank(w, now, rank, scale), store)


def stored(a: jax.Array, b: jax.Array, store: str) -> Factored:
    """`a [K, r]`, `b [r, N]` as they are kept: cast to a float dtype, or rounded to a format along their inputs."""
    if store in ("float32", "float16", "bfloat16"):
        return Factored(a.astype(store), b.astype(store))
    return Factored(quantize(a, store, axis=-2), quantize(b, store, axis=-2))


def shared_low_rank(rank: int, *, scale: Scale = "gram", shrink: float = 0.05, store: str = "float32") -> Transform:
    """Low-rank terms whose first factor is one for all leaves that read an input: GlowQ (catalogue F6).

    `shrink` draws the Gram matrix towards the identity. The shared factor is one array in several leaves;
    `qjax.evaluate.bpw` counts it once.

    Raises:
        ValueError: a rank below 1 or an unknown scale.
    """
    _check("shared_low_rank", rank, scale)
    statistics, prepare = _WEIGHTINGS[scale]

    def solve(errors: list[jax.Array], found: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        if "gram" in found:
            found = {"gram": glowq.shrunk(found["gram"], shrink)}
        return glowq.shared(errors, rank, None if prepare is None else prepare(**found)["scale"])

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        now = {p: Core.of(stage.params[p], stage.uses[p]) for p in stage.targets}
        reference = {p: Core.of(stage.reference[p], stage.uses[p]) for p in stage.targets}
        first = stage.targets[0]
        for path in stage.targets:
            if list(map(id, jax.tree.leaves(now[path].maps))) != list(map(id, jax.tree.leaves(now[first].maps))):
                raise ValueError(f"{path}: reads its input through other maps than {first}; a factor cannot be shared")
        dense = {p: jnp.asarray(dispatch.dense(core.matrix)).astype(jnp.float32) for p, core in now.items()}
        true = {p: jnp.asarray(dispatch.dense(core.matrix)).astype(jnp.float32) for p, core in reference.items()}
        found = behind_maps(first, reference[first], stage, statistics)
        errors = [true[p] - dense[p] for p in stage.targets]
        a, bs = batched(solve, errors[0].ndim - 2)(errors, found)
        one, params, rows = None, {}, {}
        for path, b in zip(stage.targets, bs, strict=True):
            term = stored(a, b, store)
            one = term.a if one is None else one
            new = Sum((now[path].matrix, Factored(one, term.b)))
            before, after = relative_errors(true[path], dense[path], dispatch.dense(new), found.get("gram"))
            params[path] = now[path].holding(new).leaf()
            rows[path] = report_row(f"rank {rank} of {len(bs)}", new, before, after)
        return Edit(params=params, rows=rows)

    return stateless(f"shared_low_rank {rank}", "inputs", edit, Needs(statistics=statistics))


def alternate(
    fmt: Format | str,
    rank: int,
    *,
    steps: int = 5,
    scale: Scale = "none",
    store: str = "float32",
    solver: Callable[..., Any] = solvers.rtn,
) -> Transform:
    """Quantization and low rank in turns, the best of `steps`: LoftQ (catalogue P2); MiLo (F8) with HQQ as `solver`.

    `solver(w, fmt)` quantizes without data; factors as in `low_rank`.

    Raises:
        ValueError: a rank or a number of steps below 1, or an unknown scale.
    """
    _check("alternate", rank, scale)
    if steps < 1:
        raise ValueError(f"alternate: {steps} steps; give at least 1")
    f = as_format(fmt)
    statistics, prepare = _WEIGHTINGS[scale]
    return quantize_with(
        _alternated,
        f,
        name=f"alternate {f.name} rank {rank}",
        statistics=statistics,
        prepare=prepare,
        rank=rank,
        steps=steps,
        store=store,
        solver=solver,
    )


def _alternated(w: jax.Array, fmt: Format, rank: int, steps: int, store: str, solver: Any, scale: Any = None) -> Sum:
    found = loftq.alternate(w, lambda m: solver(m, fmt), rank, steps=steps, scale=scale)
    return Sum((found.q, stored(found.a, found.b, store)))


def smooth_outliers(count: int = 32) -> Transform:
    """Divide the inputs of the `count` channels with the largest mean |x| mean |w| down to the least of them.

    ASER's activation smoothing (catalogue F4), an online equivalence; `aser` behind it takes their weights out of
    quantization.
    """
    if count < 1:
        raise ValueError(f"smooth_outliers: {count} channels; give at least 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        size, chosen = _outlier_channels(stage, count)
        m = batched(aser_solver.smoothing, size.ndim - 1)(size, chosen)
        return Edit(equivalence={path: Diag(1 / m) for path in stage.targets})

    return stateless(f"smooth_outliers {count}", "inputs", edit, Needs(statistics=("mean_abs",)))


def aser(
    fmt: Format | str, *, rank: int | None = None, alpha: float = 0.5, outliers: int = 32, store: str = "float32"
) -> Transform:
    """Round all but the outlier channels and rebuild what is missing by whitened low-rank factors (catalogue F4).

    The rank is given, or the least whose singular values sum to more than `alpha` of all.

    Raises:
        ValueError: a rank below 1 or an alpha outside (0, 1).
    """
    f = as_format(fmt)
    if (rank is not None and rank < 1) or not 0 < alpha < 1:
        raise ValueError(f"aser: rank {rank}, alpha {alpha}; give a rank of at least 1, or a share between 0 and 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        _, chosen = _outlier_channels(stage, outliers)
        params, rows = {}, {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            gram = behind_maps(path, core, stage, ("gram",))["gram"]
            q = solvers.rtn(jnp.where(chosen[..., None], 0, w), f)
            now = dispatch.dense(q)
            root = batched(whitening.whiten, w.ndim - 2)(gram)
            r = rank if rank is not None else _largest_rank(w - now, root, alpha)
            a, b = batched(lambda w, now, s, r=r: solvers.low_rank(w, now, r, s), w.ndim - 2)(w, now, root)
            new = Sum((q, stored(a, b, store)))
            before, after = relative_errors(w, dispatch.dense(solvers.rtn(w, f)), dispatch.dense(new), gram)
            params[path] = core.holding(new).leaf()
            rows[path] = report_row(f"{f.name} rank {r}", new, before, after)
        return Edit(params=params, rows=rows)

    return stateless(f"aser {f.name}", "inputs", edit, Needs(statistics=("gram", "mean_abs")))


def _largest_rank(error: jax.Array, root: whitening.Whitening, alpha: float) -> int:
    """One rank for all matrices of a leaf."""

    def least(error: jax.Array, root: whitening.Whitening) -> jax.Array:
        return aser_solver.rank(error, root, alpha)

    return int(jnp.max(batched(least, error.ndim - 2)(error, root)))


def _outlier_channels(stage: Stage, count: int) -> tuple[jax.Array, jax.Array]:
    """Mean |x| of the leaves' common input, and which of its channels are outliers; `[..., K]`."""
    weights, size = [], None
    for path in stage.targets:
        core, w = float_core(path, stage.params[path], stage.uses[path])
        weights.append(jnp.abs(w))
        size = behind_maps(path, core, stage, ("mean_abs",))["mean_abs"] if size is None else size
    assert size is not None
    if count > size.shape[-1]:
        raise ValueError(f"{stage.name}: {count} outlier channels of {size.shape[-1]}; give fewer")
    weight = jnp.mean(jnp.concatenate(weights, axis=-1), axis=-1)
    return size, batched(lambda s, w: aser_solver.outliers(s, w, count), size.ndim - 1)(size, weight)


def _check(name: str, rank: int, scale: str) -> None:
    if rank < 1 or scale not in _WEIGHTINGS:
        raise ValueError(f"{name}: rank {rank}, scale {scale!r}; give at least 1 and one of {', '.join(_WEIGHTINGS)}")
