"""Ranges: where a block's scale should reach.

Estimators are hashable callables on blocked, weighted values (`Range`): for `qjax.quantize(..., range=)`, for solvers
and for the calibration of activations. Learned ranges are functions of values and parameters with their published
gradients.
"""

from qjax.ranges.analytic_clipping import aciq, bit_allocation, correction
from qjax.ranges.branch_clips import branch_pact, clip_decay
from qjax.ranges.divergence import entropy
from qjax.ranges.half_wave_gaussian import half_wave, half_wave_quantize, half_wave_step
from qjax.ranges.learned_clip import pact
from qjax.ranges.learned_range import learnable_clipping
from qjax.ranges.learned_step import lsq, lsq_init
from qjax.ranges.learned_thresholds import n2uq
from qjax.ranges.manual import fixed
from qjax.ranges.mean_magnitude import absmean
from qjax.ranges.moving_ends import moving_average
from qjax.ranges.quantiles import percentile
from qjax.ranges.range import Range, extremes
from qjax.ranges.search import mse
from qjax.ranges.weight_binning import sawb
from qjax.ranges.whole import absmax, minmax, shrunk

__all__ = [
    "Range",
    "absmax",
    "absmean",
    "aciq",
    "bit_allocation",
    "branch_pact",
    "clip_decay",
    "correction",
    "entropy",
    "extremes",
    "fixed",
    "half_wave",
    "half_wave_quantize",
    "half_wave_step",
    "learnable_clipping",
    "lsq",
    "lsq_init",
    "minmax",
    "moving_average",
    "mse",
    "n2uq",
    "pact",
    "percentile",
    "sawb",
    "shrunk",
]
