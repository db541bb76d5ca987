"""EPTQ: enhanced post-training quantization via Hessian-guided network-wise optimization (Gordon et al. 2023).

arXiv:2309.11531; catalogue D9. AdaRound's variables of the whole network are learned at once on what is inside it: for
each layer the squared distance from the float network, weighted for each sample by its label-free Hessian, the squared
slopes of random projections of the network's output by the layer's, the mean over positions and the largest over
channels. RAdam at 1e-2 for 80000 steps, as the authors' script. Its layers are those with weights; here they are the
blocks. 16 projections for their 100; the gradual quantization of activations, the training of biases and steps, and the
choice of ranges by the same Hessian of the weights are left out.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import AdaRound
from qjax.transforms.contract import Chain


def eptq(format: str = "int4_channel", steps: int = 80000, rate: float = 1e-2, window: int | None = None) -> Chain:
    """Round every weight of the network for all blocks together (of `window` blocks, if given). Catalogue D9."""
    return transforms.chain(
        transforms.learn(
            AdaRound(as_format(format)),
            optimizer=optax.radam(rate),
            steps=steps,
            scope="window",
            window=window,
            weighting="label_free",
        )
    )
