"""LLM-FP4, by Liu et al. 2023 (arXiv:2310.16836): 4-bit floats on both sides, exponents of channels shifted before.

Section 4: weights in the 4-bit float of least error with a searched range, a scale an output; inputs static in one
format with one searched real scale, and for each channel an integer power of two, which moves into the exponents of the
weights. The authors choose formats and ranges by the error of the layer's output in three rounds; here they are chosen
by that of the values themselves, and the inputs' format is given.
"""

from __future__ import annotations

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def llm_fp4(
    format: str = "fp4_e2m1_f32|fp4_e3m0_f32",
    activations: str = "fp4_e2m1_tensor",
    bits: int | None = 2,
) -> Chain:
    """Shift exponents of `bits` bits (None: do not), round the weights, then their inputs. Catalogue G14."""
    return transforms.chain(
        () if bits is None else transforms.shift_exponents(bits),
        transforms.rtn(format),
        transforms.act_quantize(activations, static=True, range=ranges.mse()),
    )
