"""A low-rank matrix added to a weight before it is rounded: the error correction of QLLM (catalogue G12).

Liu et al. 2023, "QLLM: accurate and efficient low-bitwidth quantization for large language models", arXiv:2310.08041,
section 4.2: few numbers are learned, and they cost nothing afterwards, since they are merged into the weight. The
authors' code learns the factors beside the rounded weight, Q(W) + A B, and rounds W + A B in the end; here what is
rounded in the end is what is learned, with the gradient passed straight through the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import fake_quantize, quantize
from qjax.reconstruct.rule import Straight


@dataclass(frozen=True)
class LowRankUpdate(Straight):
    """The rule. Variables: a [batch..., K, rank], uniform in 1/sqrt(K), and b [batch..., rank, N], 0; W + a b / rank.

    Start and share are those of the authors' code.
    """

    format: Format
    rank: int = 4

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        *batch, k, n = w.shape
        a = jax.random.uniform(key, (*batch, k, self.rank), minval=-(k**-0.5), maxval=k**-0.5)
        return {"variables": {"a": a, "b": jnp.zeros((*batch, self.rank, n), jnp.float32)}, "constants": {}}

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        return fake_quantize(self._merged(w, theta), self.format, axis=-2, batch_axes=w.ndim - 2)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        return quantize(self._merged(w, theta), self.format, axis=-2, batch_axes=w.ndim - 2)

    def _merged(self, w: jax.Array, theta: Any) -> jax.Array:
        v = theta["variables"]
        return w + jnp.matmul(v["a"], v["b"], precision="highest") / self.rank
