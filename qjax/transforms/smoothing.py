"""SmoothQuant's migration of activation outliers into weights, as an online equivalence."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from qjax.operators import Diag
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core, transport


def smooth(alpha: float = 0.5) -> Transform:
    """Divide input channel j by s_j = max|x_j|^alpha / max|W_j|^(1 - alpha) and multiply its weights by it.

    W_j is row j of all leaves that read the input, so q, k, v share one s. Channels that are zero in the data or in the
    weights keep s = 1. Written online, `Pre(Diag(1/s), sW)`; `qjax.fold` moves 1/s into the producer where that is
    exact.

    Source: Xiao et al. 2023 (SmoothQuant), eq. 4; catalogue G5.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"smooth: alpha = {alpha} is the share of the range that moves into the weights; give 0 to 1")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        cores = [float_core(path, stage.params[path], stage.uses[path]) for path in stage.targets]
        first = stage.targets[0]
        x = transport(first, cores[0][0].maps, stage.statistics[first])["absmax"]
        s = migration(x, [w for _, w in cores], alpha)
        return Edit(equivalence={path: Diag(1.0 / s) for path in stage.targets})

    return stateless(f"smooth {alpha:g}", "inputs", edit, Needs(statistics=("absmax",)))


def migration(x: jax.Array, ws: Sequence[jax.Array], alpha: float) -> jax.Array:
    """s `[..., K]` for inputs of largest size x `[..., K]` into all of ws `[..., K, N_i]`; 1 where either is zero."""
    w = jnp.max(jnp.stack([jnp.max(jnp.abs(w), axis=-1) for w in ws]), axis=0)
    alive = (x > 0) & (w > 0)
    return jnp.where(alive, jnp.where(alive, x, 1.0) ** alpha / jnp.where(alive, w, 1.0) ** (1.0 - alpha), 1.0)
