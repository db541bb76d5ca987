"""The post-training pipeline of "A white paper on neural network quantization", Nagel et al. 2021 (arXiv:2106.08295).

Catalogue B24. Cross-layer equalization; weights with ranges of least squared error, rounded by AdaRound, or to nearest
with bias correction where there is no time to learn; activations with one static range of least squared error. The
older white paper (Krishnamoorthi 2018, arXiv:1806.08342) has ranges by channel and no equalization, which is
`recipes.int8_workflow`. Of both, training with learned ranges is not here; `transforms.fine_tune` trains the weights
under given ones.
"""

from __future__ import annotations

from typing import Literal

import optax

from qjax import ranges, transforms
from qjax.formats import as_format
from qjax.reconstruct import AdaRound
from qjax.transforms.contract import Chain


def white_paper(
    format: str = "int4_channel_narrow",
    activations: str = "int8_tensor_affine",
    rounding: Literal["learned", "nearest"] = "learned",
    steps: int = 10000,
    rate: float = 1e-2,
) -> Chain:
    """Equalize, round with ranges of least squared error, calibrate the inputs. Catalogue B24."""
    least = ranges.mse()
    if rounding == "learned":
        rule = AdaRound(as_format(format), range=least)
        weights = (transforms.learn(rule, optimizer=optax.adam(rate), steps=steps, scope="leaf"),)
    else:
        weights = (transforms.rtn(format, range=least), transforms.bias_correction())
    inputs = transforms.act_quantize(activations, static=True, range=least)
    return transforms.chain(transforms.equalize(), *weights, inputs)
