"""SAWB: statistics-aware weight binning, a clip from two moments (catalogue B11).

Choi et al., "Accurate and efficient 2-bit quantized neural networks", MLSys 2019, and "Bridging the accuracy gap",
arXiv:1807.06964. For n evenly spaced values on [-a, a] the best a is c1 sqrt(E[w^2]) - c2 E|w|, with c1 and c2 fitted
over six distributions.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.ranges.moments import integer, mean, relative, within
from qjax.ranges.range import Project
from qjax.ranges.reductions import largest_magnitude

# Number of values -> (c1, c2): even numbers of values from the papers, odd ones (with a zero) from the authors' later
# code. Fitting them anew (tests/ranges) gives the same clips within a few percent.
COEFFICIENTS = {
    3: (2.6, 1.71),
    4: (3.12, 2.064),
    8: (7.509, 6.892),
    15: (12.035, 12.03),
    16: (12.68, 12.80),
    32: (17.74, 18.64),
    127: (28.24, 30.81),
    255: (31.76, 35.04),
}


@dataclass(frozen=True)
class sawb:
    """-a, a of each block, within its values; for weights (centred at zero) in a signed integer format.

    The number of values is that on [-a, a] at the format's step: 2^b - 1 where the step is a/(2^(b-1) - 1), else 2^b.
    Where the formula gives nothing positive (values of one magnitude) the block keeps its range.

    Raises ValueError for a format with another number of values than `COEFFICIENTS` has.
    """

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        element = integer("sawb", fmt)
        values = 2**element.bits - (fmt.rule == "absmax")
        if values not in COEFFICIENTS or (element.min >= 0 and fmt.offset is None):
            have = ", ".join(map(str, COEFFICIENTS))
            raise ValueError(f"sawb has coefficients for {have} values on [-a, a], not for {fmt.name}")
        _, reach = largest_magnitude(x, axes)
        size = jnp.abs(relative(x, reach))
        first, second = mean(size, axes, weights), jnp.sqrt(mean(size * size, axes, weights))
        c1, c2 = map(jnp.float32, COEFFICIENTS[values])
        high = within((c1 * second - c2 * first) * reach, reach)
        return -high, high
