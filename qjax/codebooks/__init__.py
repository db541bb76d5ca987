"""Where value tables come from: constructions of scalar and, later, vector codebooks."""

from qjax.codebooks.block_medians import abnormal_float
from qjax.codebooks.float_int import flint
from qjax.codebooks.fourth_roots import FourthRoots, from_fourth_roots, to_fourth_roots
from qjax.codebooks.known_density import lloyd_max
from qjax.codebooks.normal_quantiles import normal_float
from qjax.codebooks.shifts import abfloat, additive_powers, log_middles, powers, two_powers

__all__ = [
    "FourthRoots",
    "abfloat",
    "abnormal_float",
    "additive_powers",
    "flint",
    "from_fourth_roots",
    "lloyd_max",
    "log_middles",
    "normal_float",
    "powers",
    "to_fourth_roots",
    "two_powers",
]
