"""QuIP: 2-bit quantization of large language models with guarantees (Chee et al. 2023, arXiv:2307.13304).

Catalogue E15. Incoherence by random orthogonal Kronecker factors on both sides, one scale for the whole matrix at 2.4
root mean squares, LDLQ (which is GPTQ); `greedy` passes after it are the paper's LDLQ-RG.
"""

from __future__ import annotations

from typing import Literal

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def quip(
    format: str = "int2_tensor", incoherence: Literal["kronecker", "hadamard"] = "kronecker", greedy: int = 0
) -> Chain:
    """Random rotations in front and behind, then LDLQ. Catalogue E15."""
    f = as_format(format)
    return chain(
        quantize_with(
            solvers.quip, f, statistics=("gram",), random=True, incoherence=incoherence, greedy=greedy
        )
    )  # fmt: skip
