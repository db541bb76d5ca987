"""Three and two bits a weight by what helped most in the methods of others, together, at no bit more.

Random Hadamard rotations make a group's weights alike and its inputs incoherent (QuaRot, arXiv:2404.00456; QuIP,
arXiv:2307.13304); ranges are searched by squared error, and GPTQ towards the float model's output rounds within them
(GPTAQ, arXiv:2504.02692); then the scales are learned on the float model's predictions, codes fixed (PV-Tuning's
continuous step, arXiv:2405.14852). The combination and its numbers are ours, chosen on the development part of the
text; `configs/weight_only/combined_two_bits.py` takes it apart.
"""

from __future__ import annotations

from typing import Literal

import optax

from qjax import ranges, transforms
from qjax.transforms.contract import Chain

Method = Literal["rtn", "gptq", "gptaq"]


def few_bits(
    format: str = "int2_g64_affine",
    method: Method = "gptaq",
    rotated: bool = True,
    searched: bool = True,
    steps: int = 64,
    rate: float = 1e-2,
) -> Chain:
    """Rotate, round in searched ranges, learn the scales for `steps` of Adam at `rate`, which falls to zero (0: none).

    Raises:
        ValueError: a method that is none of "rtn", "gptq", "gptaq".
    """
    falling = optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1)))
    return transforms.chain(
        transforms.rotate(scores=False, heads=False) if rotated else (),
        transforms.round_by(method, format, order="activation", range=ranges.mse() if searched else None),
        transforms.distill_scales(optimizer=falling, steps=steps) if steps else (),
    )
