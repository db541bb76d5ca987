"""A weight as a dense part to quantize and a sparse part kept as it is: which entries are worth that.

The entries of largest magnitude (LLM-MQ, Li et al. 2023; INT8 beside float32, catalogue M13 and E28), those with the
largest Fisher-weighted square (SqueezeLLM, Kim et al. 2023, section 4.2; catalogue E11), or those an unlikely draw from
the layer's normal distribution (GOBO, in `gobo`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from qjax.operators.sparse import Sparse, narrowest


def split(w: Array, score: Array, count: int, dtype: str = "float32") -> tuple[Array, Sparse]:
    """`w [K, N]` without its `count` entries of highest `score [K, N]`, and those entries.

    In the dense part they are zero, in the sparse part stored as `dtype`; the dense part keeps what that rounds away.
    Entries of score zero are moved too if `count` says so.

    >>> dense, sparse = split(jnp.array([[1.0, -9.0], [2.0, 3.0]]), jnp.array([[1.0, 9.0], [2.0, 3.0]]), 1)
    >>> dense.tolist(), sparse.values.tolist(), sparse.ins.tolist(), sparse.outs.tolist()
    ([[1.0, 0.0], [2.0, 3.0]], [-9.0], [0], [1])

    Raises:
        ValueError: shapes that differ, or a count that is not between 1 and the number of entries.
    """
    if w.ndim != 2 or w.shape != score.shape:
        raise ValueError(f"split takes one matrix and its scores, got shapes {w.shape}, {score.shape}")
    if not 1 <= count <= w.size:
        raise ValueError(f"{count} entries of a {w.shape} matrix; give 1 to {w.size}")
    K, N = w.shape
    _, flat = lax.top_k(score.reshape(-1), count)
    values = jnp.take(w.reshape(-1), flat).astype(dtype)
    dense = w.reshape(-1).at[flat].add(-values.astype(w.dtype)).reshape(w.shape)
    return dense, Sparse(values, (flat // N).astype(narrowest(K)), (flat % N).astype(narrowest(N)), (K, N))
