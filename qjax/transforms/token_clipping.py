"""Outlier Suppression: gains of norms moved out of the way, and static ranges that give up a share of the tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.equivalence.rotation import absorb_gains
from qjax.formats import FULL, Format, as_format
from qjax.operators import Quantize
from qjax.operators.maps.quantize import on_grid
from qjax.quantization import fit
from qjax.ranges.quantiles import upper_quantile
from qjax.statistics import Points, Reservoir
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, refuse_rounded, transport

DRAWN, LARGEST = Reservoir(256), Reservoir(64, largest=True)


def migrate_gains() -> Transform:
    """Move the gain of every norm into the matrices that read it, so that what is rounded is the bare normed value.

    A gain is large where outliers are, and makes them larger (Wei et al. 2022, arXiv:2209.13325, section 4.1; catalogue
    G6). Exact, and free: the gains become ones. The authors also carry the gain along the shortcut of a network whose
    norm stands behind the sum; before it, nothing else reads the gain.

    Raises:
        ValueError: a model whose wiring is unknown; a norm with a bias; a leaf that is quantized already.
    """

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        if stage.topology is None:
            raise ValueError(
                "migrate_gains: which matrices read a norm is not known of this function; give "
                "run(topology=Topology(...))"
            )
        new = absorb_gains(stage.reference, stage.topology)
        return Edit(rewritten=new, rows={path: {} for path in stage.targets if path in new})

    return stateless("migrate_gains", "model", edit)


def token_clip(fmt: Format | str = "int6_tensor_affine", *, step: float = 0.01, most: float = 0.3) -> Transform:
    """Static input ranges that hold all but a share of the tokens, the share and then the range by the output's error.

    Coarse: for each share, a multiple of `step` up to `most`, the ends are that quantile of the tokens' own largest and
    smallest values; taken is what errs least in the leaves' output. Fine: the same ends times 0.7 to 1.3. So a few
    tokens with extreme values do not set the range of all (Outlier Suppression, arXiv:2209.13325, section 4.2;
    catalogue G6; the authors' `most` is 0.1, 0.3, 0.9 for 8, 6, 4 bits). They measure the error of the whole network
    and descend on its scales in the fine stage; here every input is judged by what reads it, on a sample of tokens.

    Raises:
        ValueError: a format whose scales follow the tokens, shares outside (0, 1]; an input that is quantized already.
    """
    f = as_format(fmt)
    if not f.tensor or f.across != FULL or not 0 < step <= most <= 1:
        raise ValueError(
            f"token_clip: {f.name}, shares of {step} up to {most}; give one scale for the tensor, 0 < step <= most <= 1"
        )
    shares = tuple(i * step for i in range(int(most / step + 1e-6) + 1) if i * step < 1)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        first = stage.targets[0]
        cores = {p: Core.of(stage.params[p], stage.uses[p]) for p in stage.targets}
        for path, core in cores.items():
            refuse_rounded(path, core)
        x, weights = _tokens(first, cores[first], stage)
        dense = [jnp.asarray(dispatch.dense(core.matrix)).astype(jnp.float32) for core in cores.values()]
        ws = [w.reshape(-1, *w.shape[-2:]) for w in dense]
        ends, errors = _searched(x, weights, ws, shares, fmt=f)
        rounding = Quantize.static(f, ends[0], ends[1])
        label = {
            "format": f"input {f.name} in [{float(ends[0]):.3g}, {float(ends[1]):.3g}]",
            "error_before": float(errors[0]),
            "error_after": float(errors[1]),
        }
        params = {p: core.behind(rounding).leaf() for p, core in cores.items()}
        return Edit(params=params, rows=dict.fromkeys(stage.targets, label))

    return stateless(f"token_clip {f.name}", "inputs", edit, Needs(statistics=(DRAWN, LARGEST)))


@functools.partial(jax.jit, static_argnames=("shares", "fmt"))
def _searched(
    x: jax.Array, weights: jax.Array, ws: list[jax.Array], shares: tuple[float, ...], *, fmt: Format
) -> tuple[jax.Array, jax.Array]:
    """The ends [2] of least error for tokens x [B, S, K] of `weights` [B, S]; the errors before and after."""
    grams = sum((jnp.einsum("bkn,bln->bkl", w, w, precision="highest") for w in ws), jnp.float32(0))

    def error(ends: jax.Array) -> jax.Array:
        rounded = on_grid(x, fit(ends.reshape(2, 1), fmt, axis=-1))
        apart = rounded - x
        each = jnp.sum(apart * jnp.einsum("bsk,bkl->bsl", apart, grams, precision="highest"), axis=-1)
        return jnp.sum(each * weights)

    top, bottom = (jnp.max(s * x, axis=-1).reshape(-1) for s in (1.0, -1.0))
    heavy = weights.reshape(-1)

    def quantiles(v: jax.Array) -> jax.Array:
        v = jnp.where(heavy > 0, v, -jnp.inf)  # what is not there lies at the far end, where it weighs nothing
        return jnp.concatenate([upper_quantile(v, share, (-1,), heavy).reshape(1) for share in shares])

    coarse = jnp.stack([-quantiles(bottom), quantiles(top)], axis=-1)
    errors = jax.lax.map(error, coarse)
    best = coarse[jnp.argmin(errors)]
    fine = best[None] * jnp.linspace(0.7, 1.3, 25)[:, None]
    found = jax.lax.map(error, fine)
    return fine[jnp.argmin(found)], jnp.stack([errors[0], jnp.min(found)])


def _tokens(path: str, core: Core, stage: Stage) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, S, K] that meet a core and how many each stands for [B, S]: the largest ones, and draws of the rest.

    A drawn token that is among the largest counts once.
    """
    measured = stage.statistics[path]
    drawn, largest = DRAWN.points(measured[DRAWN.name]), LARGEST.points(measured[LARGEST.name])
    weights = _stand_for(drawn, largest, jnp.asarray(measured["count"], jnp.float32))
    moved = transport(path, core.maps, {DRAWN.name: drawn, LARGEST.name: largest})
    x = jnp.concatenate([moved[DRAWN.name].x, moved[LARGEST.name].x], axis=-2)
    return x.reshape(-1, *x.shape[-2:]), weights.reshape(-1, weights.shape[-1])


@jax.jit
def _stand_for(drawn: Points, largest: Points, count: jax.Array) -> jax.Array:
    """How many tokens each of the drawn and then of the largest ones stands for, [batch..., S]."""
    (some, chosen), (size, there) = (
        (jnp.max(jnp.abs(p.x), axis=-1), p.weights[..., 0] > 0) for p in (drawn, largest)
    )  # fmt: skip
    least = jnp.min(jnp.where(there, size, -jnp.inf), axis=-1, keepdims=True)  # an empty slot: all tokens are in
    rest = chosen & (some < least)
    ours = jnp.sum(there, axis=-1, keepdims=True).astype(jnp.float32)
    each = jnp.maximum(count[..., None] - ours, 0) / jnp.maximum(jnp.sum(rest, axis=-1, keepdims=True), 1).astype(
        jnp.float32
    )
    return jnp.concatenate([jnp.where(rest, each, 0.0), there.astype(jnp.float32)], axis=-1)
