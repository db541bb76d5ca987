"""How many bits things take: true bits, whatever bytes hold the codes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from qjax.qarray import QArray


def bits(tree: Any) -> int:
    """Bits of all leaves: codes at their element's width (padding included), scales, offsets, tables, plain arrays.

    Key-generated things have no leaves and cost nothing; a PRNG key counts as the data it holds.
    """
    total = 0
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QArray)):
        if isinstance(leaf, QArray):
            total += int(np.prod(leaf.codes.shape)) * leaf.meta.element.bits
            total += bits((leaf.scales, leaf.offset if leaf.meta.offset != "zero_point" else None, leaf.table))
            if leaf.meta.offset == "zero_point" and leaf.offset is not None:
                total += _zero_point_bits(leaf)
        elif hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            total += int(np.prod(leaf.shape)) * _width(leaf.dtype)
        else:
            raise TypeError(f"cannot count the bits of a {type(leaf).__name__}; expected arrays and quantized arrays")
    return total


def _zero_point_bits(q: QArray) -> int:
    """A zero point is a code: it takes the element's bits."""
    if isinstance(q.offset, QArray):
        return bits(q.offset)
    return int(np.prod(q.offset.shape)) * q.meta.element.bits  # type: ignore[union-attr]


def _width(dtype: Any) -> int:
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        return int(np.prod(jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).shape)) * 32
    try:
        return jax.numpy.iinfo(dtype).bits
    except ValueError:
        return np.dtype(dtype).itemsize * 8 if np.dtype(dtype).kind in "bcV" else jax.numpy.finfo(dtype).bits


def nbytes(tree: Any) -> int:
    """Bytes of all leaves of a tree of arrays and quantized arrays, true bits rounded up at the end.

    >>> import jax.numpy as jnp
    >>> from qjax.quantization import quantize
    >>> nbytes({"a": quantize(jnp.ones((64, 2)), "int4_g64"), "b": jnp.ones(3)})
    80
    """
    return -(-bits(tree) // 8)


def bits_per_weight(tree: Any) -> float:
    """True bits over logical elements (padding costs bits and is no weight); plain arrays count as they are.

    >>> import jax.numpy as jnp
    >>> from qjax.quantization import quantize
    >>> bits_per_weight(quantize(jnp.ones((64, 2)), "int4_g64"))
    4.25
    """
    weights = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QArray)))
    if weights == 0:
        raise ValueError("the tree holds no weights")
    return bits(tree) / weights
