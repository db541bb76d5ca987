"""Two-phase rounding: a value rounded twice, on two grids half a radix apart (Sun et al., NeurIPS 2020).

Their 4-bit training holds gradients as 0 and +-4^k, k = -3..3, and rounds each one to 4^k for one product of the
backward pass and to 2*4^k for the other (its even and its odd phase, by the power of two). Where one phase rounds up
the other rounds down, so that neither bias reaches both products.
"""

from __future__ import annotations

from jax import Array

from qjax.formats.elements import Element


def two_phase(x: Array, scale: Array, element: Element, table: Array | None = None) -> tuple[Array, Array]:
    """Float32 `x` on the values of `element` times `scale` (even phase) and times 2*`scale` (odd phase).

    `scale` broadcasts against `x`. Nearest, saturating: with powers of four the two together hold all powers of two.

    >>> import jax.numpy as jnp
    >>> from qjax.formats import Table
    >>> radix4 = Table("radix4", (-16.0, -4.0, -1.0, 0.0, 1.0, 4.0, 16.0))
    >>> even, odd = two_phase(jnp.array([3.0, -1.9, 0.6]), jnp.ones(1), radix4)
    >>> even.tolist(), odd.tolist()
    ([4.0, -1.0, 1.0], [2.0, -2.0, 0.0])
    """
    even = element.round(x / scale, table) * scale
    return even, element.round(x / (2 * scale), table) * (2 * scale)
