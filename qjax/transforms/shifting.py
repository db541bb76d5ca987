"""Outlier Suppression+: inputs shifted and scaled, channel by channel, as an online equivalence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax.formats import Format, as_format
from qjax.operators import Composed, Diag, Shift
from qjax.operators.operator import batched
from qjax.solvers import shift_and_scale as solver
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import channel_ends, float_core
from qjax.transforms.samples import SAMPLE, tokens


def shift_and_scale(weights: Format | str, inputs: Format | str, *, points: int = 100, shift: bool = True) -> Transform:
    """Move every input channel to the middle of its range and scale those beyond a threshold down to it.

    The threshold is the one of `points` under which rounding the leaf's weights to `weights` and its input to `inputs`
    errs least in the output, over all leaves that read the input, on a sample of tokens (half drawn, half the largest).
    Written online, x -> (x - z)/s as a scale and a shift, with z W as a bias behind the weight; `qjax.fold` moves the
    scale into a norm's gain, the shift into a norm's bias and z W into the layer's own bias. Without `shift` it is
    what the authors do behind an RMSNorm; it is also the way out where `run` raises NotEquivalent, since beside a
    massive activation, whose channel moves by thousands, float32 has no digits left for the other tokens.

    Outlier Suppression+ (Wei et al. 2023, arXiv:2304.09145; catalogue G7). The authors compare the outputs of attention
    for q, k, v and of silu(gate) * up; here each leaf's own output counts.

    Raises:
        ValueError: fewer than one point.
    """
    w_format, x_format = as_format(weights), as_format(inputs)
    if points < 1:
        raise ValueError(f"shift_and_scale: {points} points; give at least 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}
        first = stage.targets[0]
        core, w = cores[first]
        x, there = tokens(first, core, stage)
        low, high = channel_ends(first, core, stage.statistics[first])

        def search(ws: list[jax.Array], *data: jax.Array) -> solver.Migration:
            return solver.search(ws, *data, weights=w_format, inputs=x_format, points=points, shift=shift)

        found = batched(search, w.ndim - 2)([w for _, w in cores.values()], x, there, low, high)
        m = Composed((Diag(1 / found.scale), Shift(-found.shift / found.scale))) if shift else Diag(1 / found.scale)
        errors = jnp.sum(found.errors.reshape(-1, points), axis=0)
        row = {
            "format": f"threshold {float(jnp.max(found.threshold)):.3g}",
            "error_before": float(errors[0]),
            "error_after": float(jnp.min(found.errors.reshape(-1, points), axis=1).sum()),
        }
        return Edit(equivalence=dict.fromkeys(stage.targets, m), rows=dict.fromkeys(stage.targets, row))

    name = f"shift_and_scale {w_format.name} {x_format.name}" + ("" if shift else " unshifted")
    return stateless(name, "inputs", edit, Needs(statistics=("min", "max", "mean", *SAMPLE)))
