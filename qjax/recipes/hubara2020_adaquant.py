"""AdaQuant, by Hubara et al. 2020 (arXiv:2006.10518): layer-wise calibration.

Catalogue D5, its calibration of one layer; the paper's integer program over bit widths is another transform. Weights
and steps move by Adam on the layer's output, fed by the quantized prefix ("sequential" in the paper).
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import AdaQuant
from qjax.transforms.contract import Chain


def adaquant(format: str = "int4_g64", steps: int = 1000, rate: float = 1e-2) -> Chain:
    """Weights moved off their float values, with their steps, until the rounded layer fits. Catalogue D5."""
    rule = AdaQuant(as_format(format))
    return transforms.chain(transforms.learn(rule, optimizer=optax.adam(rate), steps=steps, scope="leaf"))
