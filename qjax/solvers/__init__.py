"""Solvers: the mathematics of one weight matrix `[K, N]` and its statistics; the number format is always an argument.

One file a published solver, each a pure function that jits and vmaps. Nothing here knows a model, a path or a batch.
"""

from qjax.solvers import aser, awq, d2quant, glowq, gobo, gptq, loftq, mixed_groups, nupes, outliers, qera, whitening
from qjax.solvers.layer_error import column_objectives, objective
from qjax.solvers.lqer import low_rank
from qjax.solvers.nearest import rtn

__all__ = [
    "aser",
    "awq",
    "column_objectives",
    "d2quant",
    "glowq",
    "gobo",
    "gptq",
    "loftq",
    "low_rank",
    "mixed_groups",
    "nupes",
    "objective",
    "outliers",
    "qera",
    "rtn",
    "whitening",
]
