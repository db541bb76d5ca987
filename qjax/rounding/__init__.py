"""Roundings: which code a value gets. Pytrees, so that a key inside is data and not a recompilation."""

from qjax.rounding.to_nearest import Nearest, nearest
from qjax.rounding.unbiased import Stochastic, stochastic

__all__ = ["Nearest", "Stochastic", "nearest", "stochastic"]
