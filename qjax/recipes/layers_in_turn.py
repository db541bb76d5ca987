"""Layers quantized in turn, what is still in float trained after each.

Catalogue D16: "Fast integer approximations in convolutional neural networks using layer-by-layer training", whose
networks are small convolutional ones with 8-bit integers. Rates and numbers of steps here are ours.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.transforms.contract import Chain


def layer_by_layer(format: str = "int4_g64", steps: int = 2, rate: float = 1e-5) -> Chain:
    """Adam for `steps` updates after each layer, at `rate`. Catalogue D16."""
    return transforms.chain(transforms.layer_by_layer(format, optimizer=optax.adam(rate), steps=steps))
