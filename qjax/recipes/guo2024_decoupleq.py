"""decoupleQ: towards 2-bit post-training uniform quantization (Guo et al. 2024, arXiv:2404.12759).

Catalogue E13, its layer-wise stage: integers by GPTQ, scales and zeros by least squares, in turns (the authors' `--max-
iter-num 4 --round-fn gptq --act-order`). The tuning of scales, zeros and norms over a block that follows in the paper
is reconstruction and not part of it. Zeros are floats: an affine format's zero points become minimums.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def decoupleq(
    format: str = "int2_g64_affine", rounds: int = 4, order: Literal["none", "activation"] = "activation"
) -> Chain:
    """Codes and scales decoupled, each at its optimum given the other. Catalogue E13."""
    f = as_format(format)
    if f.offset == "zero_point":
        f = dataclasses.replace(f, offset="minimum")
    name = f"decoupleq {format}"
    return chain(
        quantize_with(solvers.decoupleq, f, name=name, statistics=("gram",), rounds=rounds, order=order)
    )  # fmt: skip
