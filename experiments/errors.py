"""One yardstick for every row: how far each matrix's output moves on inputs nobody calibrated on.

A transform's own report measures what it minimized (or, without data, the weights). To compare rows, the float model's
inputs of each matrix are kept for a window of the development part, and ||x W - matmul(x, op)|| / ||x W|| is taken for
every row on the same x, activation quantizers included. Where a matrix was rewritten together with others (a rotation
of the residual stream, folded into the weights), it reads and writes in other coordinates than the float model's x and
W and has no such number: rows compare by perplexity alone there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import qjax
from qjax.statistics import Reservoir
from qjax.trace.paths import leaves_with_paths
from qjax.trace.uses import Uses


def inputs(model: Any, params: Any, window: Any, targets: Sequence[str]) -> dict[str, jax.Array]:
    """The float model's input [tokens, K] of each target on one batch of windows; equal tokens count once.

    Targets without a row per token (batched experts) are left out.
    """
    tokens = int(window.shape[0] * window.shape[1])
    seen = qjax.observe(model, params, [window], collect=(Reservoir(tokens),), where=list(targets))
    rows = {path: seen[path]["reservoir"] for path in targets if path in seen}
    return {path: sample.rows[sample.filled] for path, sample in rows.items() if sample.rows.ndim == 2}


def output_errors(
    x: Mapping[str, jax.Array], uses: Uses, reference: Any, params: Any, rewritten: Collection[str] = ()
) -> dict[str, float]:
    """Relative output error {path: ...} of each matrix of `params` against the float `reference` on inputs `x`.

    Those `rewritten` (`qjax.Report.rewritten`) are left out.
    """
    before, after = leaves_with_paths(reference), leaves_with_paths(params)
    pending = {
        path: _relative(rows, uses[path][0].to_matrix(before[path]), uses[path][0].to_matrix(after[path]))
        for path, rows in x.items()
        if path not in rewritten
    }
    return {path: float(value) for path, value in pending.items()}


@jax.jit
def _relative(x: jax.Array, w: jax.Array, op: Any) -> jax.Array:
    y = x @ w.astype(jnp.float32)
    moved = qjax.matmul(x, op).astype(jnp.float32) - y
    return jnp.sqrt(jnp.sum(moved * moved) / jnp.maximum(jnp.sum(y * y), jnp.finfo(jnp.float32).tiny))
