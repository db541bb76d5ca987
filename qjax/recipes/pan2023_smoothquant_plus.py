"""SmoothQuant+, by Pan et al. 2023 (arXiv:2312.03788): smoothing for 4-bit weights, one strength for the model.

Catalogue E18. The strength alpha comes from a grid of step 0.05 by the loss of the whole quantized model, here the
squared distance of its logits on the first calibration batch.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def smoothquant_plus(format: str = "int4_g64", batches: int = 1) -> Chain:
    """Smooth by the best single alpha, then round. Catalogue E18."""
    return transforms.chain(transforms.smooth_search(format, batches=batches), transforms.rtn(format))
