"""The error of a matrix in each of several formats, so that a layer takes the best: in its weights or at its output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats import Format, as_format
from qjax.quantization import dequantize, quantize
from qjax.ranges import Range
from qjax.solvers.layer_error import column_objectives


def layer_errors(
    w: Array, formats: Sequence[Format | str], gram: Array | None = None, *, range: Range | None = None
) -> Array:
    """‖W - Ŵ‖² of `w [..., K, N]` rounded to nearest in each format, or ‖X(W - Ŵ)‖² with `gram [..., K, K]` = XᵀX.

    Summed over batch axes; float32 `[formats]`. The least of them picks integers or floats for a layer (MoFQ,
    arXiv:2305.12356; catalogue A29), and groups along the inputs ("int4_g64") or along the outputs ("int4_t1x64":
    AdaDim, arXiv:2309.15531; catalogue C12), which GPTQ can then run on.

    >>> layer_errors(jnp.array([[1.0, 100.0], [2.0, 70.0]]), ("int4_t1x2", "int4_g2")).argmin().item()
    1
    """
    return _layer_errors(w, gram, formats=tuple(map(as_format, formats)), range=range)


@partial(jax.jit, static_argnames=("formats", "range"))
def _layer_errors(w: Array, gram: Array | None, *, formats: tuple[Format, ...], range: Range | None) -> Array:
    w = w.astype(jnp.float32)

    def error(fmt: Format) -> Array:
        lost = w - dequantize(quantize(w, fmt, axis=-2, batch_axes=w.ndim - 2, range=range))
        return jnp.sum(lost * lost if gram is None else column_objectives(gram.astype(jnp.float32), lost))

    return jnp.stack([error(fmt) for fmt in formats])
