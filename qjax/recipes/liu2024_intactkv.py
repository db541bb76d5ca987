"""IntactKV, by Liu et al. 2024 (arXiv:2403.01241): the first tokens' keys and values stay those of the float model.

The pivot tokens of a sequence, its start token or a chat template's system prompt, are put in front of a quantized
model by the keys and values that the float model computes; the authors add this to models from RTN, GPTQ and AWQ, here
with their groups of 128 and a zero point. Their trained variant moves these keys and values for 160 steps at 2e-4, a
step's gradient over 16 of 128 samples, which is one calibration batch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def intactkv(
    format: str = "int3_g128_affine",
    method: Literal["gptq", "rtn"] = "gptq",
    tokens: Sequence[int] = (1,),
    steps: int = 0,
) -> Chain:
    """Quantize the weights, then put the float model's keys and values of `tokens` in front. Catalogue I8.

    `tokens` are the start token of Llama 2 and SmolLM2 unless said. `steps` trains what they leave (160 in the paper).
    """
    return transforms.chain(
        transforms.round_by(method, format),
        transforms.prefix(tokens),
        transforms.tune_prefix(steps=steps) if steps else (),
    )
