"""OBQ: Optimal Brain Compression's quantizer (Frantar and Alistarh 2022, arXiv:2208.11580).

Catalogue E2. Weights of an output in the exact greedy order, each with its own inverse: cubic in the inputs for every
output, so for small layers.
"""

from __future__ import annotations

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def obq(format: str = "int4", damp: float = 0.01) -> Chain:
    """The cheapest weight to round goes first, output by output. Catalogue E2."""
    f = as_format(format)
    return chain(quantize_with(solvers.obq, f, statistics=("gram",), damp=damp))
