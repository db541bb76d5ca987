"""Roundings: which code a value gets. Pytrees, so that a key inside is data and not a recompilation.

A rounding is given to `qjax.quantize`; `dyadic` and `rescale` round integers, `two_phase` rounds a value twice.
"""

from qjax.rounding.directed import Directed, ceil, floor, toward_zero
from qjax.rounding.phases import two_phase
from qjax.rounding.rescaling import Dyadic, dyadic, rescale
from qjax.rounding.to_nearest import HalfAway, Nearest, half_away, nearest
from qjax.rounding.unbiased import Stochastic, stochastic

__all__ = [
    "Directed",
    "Dyadic",
    "HalfAway",
    "Nearest",
    "Stochastic",
    "ceil",
    "dyadic",
    "floor",
    "half_away",
    "nearest",
    "rescale",
    "stochastic",
    "toward_zero",
    "two_phase",
]
