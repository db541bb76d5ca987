"""Real quantization: products of codes in integer arithmetic, their accumulators, and biases among them."""

from qjax.integer.accumulation import accumulate
from qjax.integer.execution import integer_bias, integer_matmul, integer_sums

__all__ = ["accumulate", "integer_bias", "integer_matmul", "integer_sums"]
