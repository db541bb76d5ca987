"""FAQ (fine-tuning after quantization), by McKinstry et al. 2018 (arXiv:1809.04191).

Catalogue B22: "Discovering low-precision networks close to full-precision networks for efficient inference". Begin with
the trained network, calibrate the ranges of its activations, then train on with weights and activations rounded: long
enough, at a rate that falls exponentially, and with batches large enough that the noise of the gradient averages out.
The percentile and the rates here are starting points of ours: the paper's belong to ImageNet's networks.
"""

from __future__ import annotations

import optax

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def faq(
    format: str = "int4_channel_narrow",
    activations: str = "int8_tensor_narrow",
    steps: int = 1000,
    rate: float = 1e-4,
    last: float = 1e-6,
) -> Chain:
    """Static inputs by a percentile of 99.99, then stochastic gradient descent with momentum 0.9. Catalogue B22."""
    falling = optax.exponential_decay(rate, max(steps, 1), last / rate)
    return transforms.chain(
        transforms.act_quantize(activations, static=True, range=ranges.percentile(99.99)),
        transforms.fine_tune(format, optimizer=optax.sgd(falling, momentum=0.9), steps=steps),
    )
