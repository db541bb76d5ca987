"""Reconstruction: make one stage's output close to its reference by gradient descent over chosen numbers."""

from qjax.reconstruct.engine import Minimum, minimize

__all__ = ["Minimum", "minimize"]
