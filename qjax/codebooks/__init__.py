"""Where value tables come from: constructions of scalar codebooks, and product codes of embeddings."""

from qjax.codebooks.block_medians import abnormal_float
from qjax.codebooks.float_int import flint
from qjax.codebooks.fourth_roots import FourthRoots, from_fourth_roots, to_fourth_roots
from qjax.codebooks.known_density import lloyd_max
from qjax.codebooks.multi_granular import (
    ProductCodes,
    product_bits,
    product_codes,
    product_distance,
    product_lookup,
    product_quantize,
    product_values,
)
from qjax.codebooks.normal_quantiles import normal_float
from qjax.codebooks.shifts import abfloat, additive_powers, log_middles, powers, two_powers

__all__ = [
    "FourthRoots",
    "ProductCodes",
    "abfloat",
    "abnormal_float",
    "additive_powers",
    "flint",
    "from_fourth_roots",
    "lloyd_max",
    "log_middles",
    "normal_float",
    "powers",
    "product_bits",
    "product_codes",
    "product_distance",
    "product_lookup",
    "product_quantize",
    "product_values",
    "to_fourth_roots",
    "two_powers",
]
