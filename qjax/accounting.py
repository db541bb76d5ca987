"""How many bits things take: true bits, whatever bytes hold the codes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from qjax.qarray import QArray


def bits(tree: Any) -> int:
    """Bits of all leaves: codes at their element's width (padding included), scales, offsets, tables, plain arrays.

    Zero points that are codes take the element's bits, the index of a choice among n elements log2(n).

    Key-generated things have no leaves and cost nothing; a PRNG key counts as the data it holds.
    """
    total = 0
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QArray)):
        if isinstance(leaf, QArray):
            total += int(np.prod(leaf.codes.shape)) * leaf.meta.element.bits
            total += bits(leaf.scales)
            total += _narrow(leaf.offset, leaf.meta.element.bits if leaf.meta.offset == "zero_point" else None)
            total += _narrow(leaf.table, getattr(leaf.meta.element, "choice_bits", None))
        elif hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            total += int(np.prod(leaf.shape)) * _width(leaf.dtype)
        else:
            raise TypeError(f"cannot count the bits of a {type(leaf).__name__}; expected arrays and quantized arrays")
    return total


def _narrow(child: Any, width: int | None) -> int:
    """Bits of a child whose entries take `width` bits whatever bytes hold them; as it is if None."""
    if child is None or isinstance(child, QArray) or width is None:
        return bits(child)
    return int(np.prod(child.shape)) * width


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
