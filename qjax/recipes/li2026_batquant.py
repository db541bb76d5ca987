"""BATQuant, by Li et al. 2026 (arXiv:2603.16590): affine maps as wide as a block of the format, for MXFP4.

A map of each block of 32 channels, the Kronecker product of a matrix that all blocks of an input share and one of their
own, learned on the outputs of each network block together with the ranges of the weights' blocks; W4A4, the cache in
float unless one is named. Left out: the learned ranges of the activations' blocks. The sizes of the two factors, their
start (identities), the rates (OmniQuant's) and the number of steps (FlatQuant's) are ours: the authors' code was not at
hand.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def batquant(
    format: str = "mxfp4",
    activations: str | None = "mxfp4",
    block: int = 32,
    shared: int = 8,
    steps: int = 480,
    rates: tuple[float, float] = (5e-3, 1e-2),
    cache: str | None = None,
) -> Chain:
    """Learn a map for each block of channels and the weights' ranges, round weights and inputs. Catalogue H5."""
    learned = transforms.learn_maps(
        transforms.BlockFactors(block, shared),
        format,
        activations,
        optimizer=transforms.separate_rates(*rates),
        steps=steps,
        clip=True,
        stream="float",
    )
    return transforms.chain(
        learned,
        () if activations is None else transforms.act_quantize(activations),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
