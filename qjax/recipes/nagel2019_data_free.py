"""Data-free quantization (DFQ), by Nagel et al. 2019 (arXiv:1906.04721): 8 bits without a training example.

Catalogue B16. Cross-layer equalization, rounding per tensor, and the mean error of each output taken back as a bias.
The means E[x] that the correction needs come from batch norms in the paper (`equivalence.clipped_normal_mean`), which
leaves out all data; a network without them has to see a few batches, as the paper's empirical correction does. The
absorption of high biases (`equivalence.absorbed`) is for layers with a bias and a ReLU.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def data_free(format: str = "int8_tensor", rounds: int = 20) -> Chain:
    """Equalize, round to nearest, restore the mean of every output. Catalogue B16."""
    return transforms.chain(transforms.equalize(rounds=rounds), transforms.rtn(format), transforms.bias_correction())
