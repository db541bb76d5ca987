"""Where value tables come from: constructions of scalar and, later, vector codebooks."""

from qjax.codebooks.block_medians import abnormal_float
from qjax.codebooks.float_int import flint
from qjax.codebooks.known_density import lloyd_max
from qjax.codebooks.normal_quantiles import normal_float
from qjax.codebooks.shifts import abfloat, additive_powers, log_middles, powers, two_powers

__all__ = [
    "abfloat",
    "abnormal_float",
    "additive_powers",
    "flint",
    "lloyd_max",
    "log_middles",
    "normal_float",
    "powers",
    "two_powers",
]
