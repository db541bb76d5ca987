"""Products in two steps: a few upper bits say which outputs are large, and only those get the other bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.formats import Format, as_format
from qjax.operators import OutputDirected
from qjax.operators.output_directed import parts
from qjax.solvers import rtn
from qjax.statistics import Reservoir
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core, transport
from qjax.transforms.matrices import relative_errors, report_row

SAMPLE = Reservoir(64)


def output_directed(
    fmt: Format | str = "int4_narrow", inputs: Format | str = "int4_narrow", *, high: int = 2, share: float = 0.5
) -> Transform:
    """Round weights and inputs; outputs whose `high` upper bits promise little keep that promise for their value.

    A leaf's threshold leaves a `share` of its outputs on the calibration tokens to be computed in full. The authors set
    thresholds and train with them; a share is ours.

    Source: Output-Directed Dynamic Quantization (ICPP 2023); catalogue G25.

    Raises:
        ValueError: a share outside (0, 1]; formats without upper bits; a leaf that is quantized already.
    """
    weights, f = as_format(fmt), as_format(inputs)
    if not 0 < share <= 1:
        raise ValueError(f"output_directed: a share of {share} of the outputs; give one in (0, 1]")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        params, rows = {}, {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            points = SAMPLE.points(stage.statistics[path][SAMPLE.name])
            points = transport(path, core.maps, {SAMPLE.name: points})[SAMPLE.name]
            x = jnp.broadcast_to(points.x, (*w.shape[:-2], *points.x.shape[-2:]))
            q = rtn(w, weights)
            _, upper = parts(x, q, f, high)
            there = jnp.broadcast_to(points.weights[..., :1] > 0, upper.shape)
            sizes = jnp.where(there, jnp.abs(upper), jnp.nan)
            threshold = jnp.nanquantile(sizes, 1 - share, axis=(-2, -1)) if share < 1 else jnp.zeros(w.shape[:-2])
            params[path] = core.holding(OutputDirected(q, threshold, f, high)).leaf()
            back = dispatch.dense(q)
            before, after = relative_errors(w, back, back, None)
            rows[path] = report_row(f"{weights.name}, {share:.0%} of the outputs in full", q, before, after)
        return Edit(params=params, rows=rows)

    name = f"output_directed {weights.name} {f.name} {high} {share:g}"
    return stateless(name, "inputs", edit, Needs(statistics=(SAMPLE,)))
