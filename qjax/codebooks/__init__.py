"""Where value tables come from: constructions of scalar and, later, vector codebooks."""

from qjax.codebooks.normal_quantiles import normal_float

__all__ = ["normal_float"]
