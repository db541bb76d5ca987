"""BRECQ: pushing the limit of post-training quantization by block reconstruction (Li et al. 2021, arXiv:2102.05426).

Catalogue D4, its reconstruction: AdaRound's variables of all matrices of a block learned together on the block's
output, its inputs from the quantized prefix, by Adam at 1e-3 for 20000 steps. The authors' script leaves the squared
error as it is (`opt_mode="mse"`); `fisher=True` weights it by the squared gradients of the loss by the block's output
(eq. 10), of the loss given to `run`, at the float model. Their code takes the gradient of the divergence between the
float model and the one quantized up to here, and adds 1 to its magnitude. Learned activation steps and the search for
bits are not here.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import AdaRound
from qjax.transforms.contract import Chain


def brecq(format: str = "int4_g64", steps: int = 20000, rate: float = 1e-3, fisher: bool = False) -> Chain:
    """Each weight to the neighbour that serves its block's output best; `fisher` weights it. Catalogue D4."""
    rule, weighting = AdaRound(as_format(format)), "fisher" if fisher else None
    return transforms.chain(transforms.learn(rule, optimizer=optax.adam(rate), steps=steps, weighting=weighting))
