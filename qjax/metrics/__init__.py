"""Measures of damage: on tensors, and on logits."""

from qjax.metrics.logits import kl_divergence, most_likely, next_token_loss, top1_flips
from qjax.metrics.tails import kurtosis, kurtosis_penalty
from qjax.metrics.tensors import cosine, mse, relative_error, sqnr

__all__ = [
    "cosine",
    "kl_divergence",
    "kurtosis",
    "kurtosis_penalty",
    "most_likely",
    "mse",
    "next_token_loss",
    "relative_error",
    "sqnr",
    "top1_flips",
]
