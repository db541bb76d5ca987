"""QLLM: outlier channels in several copies and similar channels merged, in front of the leaves that read them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax.formats import Format, as_format
from qjax.operators import Map
from qjax.operators.operator import batched
from qjax.solvers import channel_reassembly as solver
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import behind_maps
from qjax.transforms.samples import SAMPLE, tokens


def reassemble_channels(
    weights: Format | str, inputs: Format | str, *, points: int = 100, ratio: float = 0.2
) -> Transform:
    """Take outlier channels apart and merge similar ones, so that the width stays and the range of the input shrinks.

    A channel above a threshold becomes copies that share it, and as many other channels are merged in pairs. The
    threshold is the one of `points` under which rounding the leaf's weights to `weights` and its input to `inputs` errs
    least in the output, over all leaves that read the input, on a sample of tokens (half drawn, half the largest); it
    adds at most `ratio` of the channels. The leaf stays float behind a `Reassemble`, an approximation because of the
    merged channels; put weight methods and `act_quantize` behind it, and maps that mix channels too.

    QLLM (Liu et al. 2023, arXiv:2310.08041, section 4.1; catalogue G12). The authors compare the outputs of attention
    for q, k, v and of silu(gate) * up; here each leaf's own output counts. They leave the output projection alone.

    Raises:
        ValueError: fewer than one point, a ratio outside [0, 0.5]; a leaf that is quantized already, by name.
    """
    w_format, x_format = as_format(weights), as_format(inputs)
    if points < 1 or not 0 <= ratio <= 0.5:
        raise ValueError(
            f"reassemble_channels: {points} points, at most {ratio} of the channels added; give at least 1 and a ratio "
            "in [0, 0.5], since pairs are merged"
        )

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        cores = {p: float_core(p, stage.params[p], stage.uses[p]) for p in stage.targets}
        first = stage.targets[0]
        core, w = cores[first]
        x, there = tokens(first, core, stage)
        size = behind_maps(first, core, stage, ("absmax",))["absmax"]

        def search(ws: list[jax.Array], *data: jax.Array) -> solver.Search:
            return solver.search(ws, *data, weights=w_format, inputs=x_format, points=points, ratio=ratio)

        found = batched(search, w.ndim - 2)([w for _, w in cores.values()], x, there, size)
        errors = found.errors.reshape(-1, points)
        added = int(jnp.max(found.added))
        row = {
            "format": f"{added} channels added",
            "error_before": float(jnp.sum(errors[:, 0])),
            "error_after": float(jnp.sum(jnp.min(errors, axis=1))),
        }
        rows = dict.fromkeys(stage.targets, row)
        if added == 0:
            return Edit(rows=rows)
        new = {
            p: core.behind(found.map).holding(_behind(found.map, w).astype(core.matrix.dtype)).leaf()
            for p, (core, w) in cores.items()
        }
        return Edit(params=new, rows=rows)

    name = f"reassemble_channels {w_format.name} {x_format.name} {ratio:g}"
    return stateless(name, "inputs", edit, Needs(statistics=("absmax", *SAMPLE)))


@jax.jit
def _behind(m: Map, w: jax.Array) -> jax.Array:
    return batched(solver.reassembled, w.ndim - 2)(m, w)
