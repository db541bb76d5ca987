"""MobileQuant, by Tan et al. 2024 (arXiv:2408.13933): static 8-bit inputs whose ranges are learned end to end.

The authors' method and their scripts: SmoothQuant with alpha 0.5 in front of every linear layer, static ranges from
calibration; then, on what the last block puts out, scales of the channels (from 1), shares of the weights' ranges (from
sigmoid(4)) and ranges of the activations are learned in all blocks at once, by AdamW in 60 epochs of 1024 windows, one
a step. Rates of 1e-3, 1e-2 and 1e-6 fall to a tenth of themselves by half a cosine. 4-bit weights have a scale and a
zero point an output; 8-bit ones one of each a matrix, but for the down projections.

Here the inputs of the linear layers are rounded; there also their outputs, norms, and both products of attention. The
ranges are factors of the extremes behind the scales as they are, where the authors' stand on their own, so that a rate
is relative: 2.5e-5 is 1e-6 of a step of 0.04. The scale between queries and keys is left out.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.transforms.contract import Chain


def mobilequant(
    format: str = "int4_affine",
    activations: str = "int8_tensor_affine",
    steps: int = 61440,
    rates: tuple[float, float, float] = (1e-3, 1e-2, 2.5e-5),
    alpha: float = 0.5,
) -> Chain:
    """Smooth, then learn scales and ranges of the whole model and round weights and inputs. Catalogue G20.

    `rates` are those of scales, of weights' ranges and of inputs' ranges; W8A8 is "int8_tensor_affine" twice.
    """
    falling = [optax.cosine_decay_schedule(rate, max(steps, 1), alpha=0.1) for rate in rates]
    learned = transforms.learn_maps(
        transforms.Scales(None),
        format,
        activations,
        optimizer=transforms.separate_rates(*falling),
        steps=steps,
        clip=True,
        static=True,
        whole=True,
    )
    return transforms.chain(transforms.smooth(alpha), learned)
