"""Frame quantization of neural networks (Czaja and Na 2024, arXiv:2404.08131).

Catalogue D13. Weights as coefficients in a harmonic frame, rounded by first-order sigma-delta; no data.
"""

from __future__ import annotations

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def frames(format: str = "int2", redundancy: float = 2.0) -> Chain:
    """Sigma-delta in a frame with `redundancy` times as many vectors as inputs. Catalogue D13."""
    f = as_format(format)
    name = f"frames {f.name} x{redundancy:g}"
    return chain(quantize_with(solvers.sigma_delta, f, name=name, redundancy=redundancy))
