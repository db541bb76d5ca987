"""SignRound, by Cheng et al. 2023 (arXiv:2309.05516): optimize weight rounding via signed gradient descent for LLMs.

Catalogue D7, the first version of AutoRound. The authors' code takes 200 steps of 1/200, falling linearly, on the
output of one block after the other, fed by the quantized prefix.
"""

from __future__ import annotations

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import SignRound, sign_descent
from qjax.reconstruct.signround import LIMITS
from qjax.transforms.contract import Chain


def signround(format: str = "int4_g64", steps: int = 200) -> Chain:
    """A learned shift of each weight and shrinkage of each range, moved by signs of gradients. Catalogue D7."""
    rule = SignRound(as_format(format))
    return transforms.chain(transforms.learn(rule, optimizer=sign_descent(steps, LIMITS), steps=steps))
