"""Reconstruction: make one stage's output close to its reference by gradient descent over chosen numbers.

One engine (`minimize`), and one file a published way of learning how weights are rounded: rules of a `Latent` weight.
"""

from qjax.reconstruct.adaquant import AdaQuant
from qjax.reconstruct.adaround import AdaRound
from qjax.reconstruct.bounds import bounded, sign_descent
from qjax.reconstruct.distances import (
    distribution_distance,
    sample_weights,
    squared_distance,
    squared_distance_and_cosine,
    squared_distance_and_kl,
    weighted_squared_distance,
)
from qjax.reconstruct.distilled import distill
from qjax.reconstruct.engine import Minimum, mean_loss, minimize
from qjax.reconstruct.flexround import FlexRound
from qjax.reconstruct.learned_quantize import LearnedQuantize
from qjax.reconstruct.lora_rounding import LoRARounding
from qjax.reconstruct.low_rank_update import LowRankUpdate
from qjax.reconstruct.rule import Rule
from qjax.reconstruct.signround import SignRound
from qjax.reconstruct.stiefel import cayley_sgd
from qjax.reconstruct.tesseraq import TesseraQ, progressive_rounding

__all__ = [
    "AdaQuant",
    "AdaRound",
    "FlexRound",
    "LearnedQuantize",
    "LoRARounding",
    "LowRankUpdate",
    "Minimum",
    "Rule",
    "SignRound",
    "TesseraQ",
    "bounded",
    "cayley_sgd",
    "distill",
    "distribution_distance",
    "mean_loss",
    "minimize",
    "progressive_rounding",
    "sample_weights",
    "sign_descent",
    "squared_distance",
    "squared_distance_and_cosine",
    "squared_distance_and_kl",
    "weighted_squared_distance",
]
