"""Atom, by Zhao et al. 2023 (arXiv:2310.19102): 4-bit groups, and 8 bits for the channels with outliers.

Section 4, and the authors' script for W4A4: channels sorted by the diagonal of the Hessian, the last 128 in INT8
with a scale a token and an output, the others in groups of 128 with a symmetric scale absmax/7 each, of 0.85 of the
range for the weights and 0.9 for the activations; GPTQ; keys and values in INT4 with a zero point, a scale a head. The
authors' kernel lets two outputs share a scale, which is not done here.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def atom(
    format: str = "int4_g128_absmax",
    activations: str | None = "int4_g128_absmax",
    wide: str = "int8_narrow_f32",
    cache: str | None = "int4_affine",
    count: int = 128,
    clip: tuple[float, float] = (0.85, 0.9),
    method: Literal["gptq", "rtn"] = "gptq",
) -> Chain:
    """The `count` channels with outliers `wide`, the others narrow, in weights and inputs. Catalogue G17.

    `clip`: the shares of the narrow ranges of weights and inputs. None leaves activations or cache in float.
    """
    inputs = None if activations is None else (activations, wide)
    steps = [transforms.narrow_and_wide(format, wide, count=count, inputs=inputs, method=method, clip=clip)]
    if cache is not None:
        steps.append(transforms.cache_quantize(cache, cache))
    return transforms.chain(*steps)
