"""Where value tables come from: constructions of scalar and, later, vector codebooks."""

from qjax.codebooks.float_int import flint
from qjax.codebooks.normal_quantiles import normal_float

__all__ = ["flint", "normal_float"]
