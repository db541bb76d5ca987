"""GPFQ and SPFQ: greedy path following (Zhang et al. 2022, arXiv:2201.11113; Zhang and Saab 2023, arXiv:2309.10975).

Catalogue D12. Neuron by neuron along its inputs in both networks, rounded to nearest (GPFQ) or stochastically (SPFQ).
The quantized network's inputs are those behind every matrix before, the same block's included: `qjax.run` measures
these chains sequentially. With `within="together"` a block's later matrices follow inputs that its earlier ones are
about to change, and errors grow from block to block.
"""

from __future__ import annotations

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def gpfq(format: str = "int4_g64") -> Chain:
    """Greedy path following, to nearest. Catalogue D12."""
    return chain(quantize_with(solvers.gpfq, as_format(format), statistics=("gram", "cross_gram")))


def spfq(format: str = "int4_g64") -> Chain:
    """Greedy path following with stochastic rounding. Catalogue D12."""
    f = as_format(format)
    return chain(
        quantize_with(solvers.gpfq, f, name=f"spfq {f.name}", statistics=("gram", "cross_gram"), random=True)
    )  # fmt: skip
