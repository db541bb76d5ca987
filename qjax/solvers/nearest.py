"""Round to nearest: every block on its own, without data (catalogue E1)."""

from __future__ import annotations

from jax import Array

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import quantize
from qjax.ranges import Range


def rtn(w: Array, fmt: Format | str, *, range: Range | None = None) -> QArray:
    """Quantize `w [..., K, N]` to nearest, blocks along K; `range` estimates each block's range.

    >>> import jax.numpy as jnp
    >>> from qjax.quantization import dequantize
    >>> float(dequantize(rtn(jnp.array([[7.5], [-1.2]]), "int4_g2_f32"))[1, 0])
    -1.0
    """
    return quantize(w, fmt, axis=-2, batch_axes=w.ndim - 2, range=range)
