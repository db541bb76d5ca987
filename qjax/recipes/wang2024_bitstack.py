"""BitStack, by Wang et al. 2024 (arXiv:2410.23918): a stack of one-bit layers that can be cut at any height.

Catalogue E30. Signs and magnitudes of rank 16, weighted by the size of the inputs; each layer costs a bit a weight
and its two thin factors. The order in which the paper drops layers across the model is not here: all stacks are
equally deep.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def bitstack(depth: int = 3, rank: int = 16) -> Chain:
    """Signs times low-rank magnitudes, layer upon layer. Catalogue E30."""
    return transforms.chain(transforms.bitstack(depth, rank=rank))
