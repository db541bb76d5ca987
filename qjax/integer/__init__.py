"""Integer arithmetic: products of codes, their accumulators and biases, and products of floats by addition."""

from qjax.integer.accumulation import accumulate
from qjax.integer.addition import additive_matmul, additive_product
from qjax.integer.dynamic_inputs import dynamic_matmul
from qjax.integer.execution import integer_bias, integer_matmul, integer_sums

__all__ = [
    "accumulate",
    "additive_matmul",
    "additive_product",
    "dynamic_matmul",
    "integer_bias",
    "integer_matmul",
    "integer_sums",
]
