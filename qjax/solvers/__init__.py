"""Solvers: the mathematics of one weight matrix `[K, N]` and its statistics; the number format is always an argument.

One file a published solver, each a pure function that jits and vmaps. Nothing here knows a model, a path or a batch.
"""

from qjax.solvers import (
    aser,
    awq,
    bitstack,
    d2quant,
    glowq,
    gobo,
    gptq,
    loftq,
    mixed_groups,
    nupes,
    outliers,
    qera,
    singular,
    whitening,
)
from qjax.solvers.alternation import alternating, decoupleq
from qjax.solvers.asymmetric import gptaq
from qjax.solvers.coordinate_descent import quantease
from qjax.solvers.frames import sigma_delta
from qjax.solvers.fusion_frames import framequant
from qjax.solvers.half_quadratic import hqq
from qjax.solvers.incoherence import quip
from qjax.solvers.layer_error import column_objectives, objective
from qjax.solvers.lqer import low_rank
from qjax.solvers.nearest import rtn
from qjax.solvers.optimal_brain import obq
from qjax.solvers.path_following import gpfq
from qjax.solvers.sensitive_clusters import squeezellm
from qjax.solvers.sparse_outliers import spqr
from qjax.solvers.ternary_weights import twn
from qjax.solvers.twice import gptqt
from qjax.solvers.weak_channels import owq

__all__ = [
    "alternating",
    "aser",
    "awq",
    "bitstack",
    "column_objectives",
    "d2quant",
    "decoupleq",
    "framequant",
    "glowq",
    "gobo",
    "gpfq",
    "gptaq",
    "gptq",
    "gptqt",
    "hqq",
    "loftq",
    "low_rank",
    "mixed_groups",
    "nupes",
    "objective",
    "obq",
    "outliers",
    "owq",
    "qera",
    "quantease",
    "quip",
    "rtn",
    "sigma_delta",
    "singular",
    "spqr",
    "squeezellm",
    "twn",
    "whitening",
]
