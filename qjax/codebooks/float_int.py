"""The float-int mixture of ANT: a code whose first set bit splits it into exponent and mantissa."""

from __future__ import annotations


def flint(bits: int) -> tuple[float, ...]:
    """The 2^bits - 1 values of a signed flint, ascending (Guo et al. 2022, ANT; catalogue A28).

    Of m = bits - 1 magnitude bits, binade e from -(m-1) to m-1 keeps as many for the mantissa as the first-one coding
    of the exponent leaves: m-1+e below 1, m-2-e above, none in the last; in units of the smallest.

    >>> flint(4)[7:]
    (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
    """
    if not 3 <= bits <= 8:
        raise ValueError(f"a signed flint has 3 to 8 bits, got {bits}")
    m = bits - 1
    positive = []
    for e in range(1 - m, m):
        mantissa = m - 1 + e if e < 0 else max(m - 2 - e, 0)
        positive += [2.0 ** (e + m - 1) * (1 + j / 2**mantissa) for j in range(2**mantissa)]
    return (*(-v for v in reversed(positive)), 0.0, *positive)
