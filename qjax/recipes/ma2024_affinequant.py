"""AffineQuant, by Ma et al. 2024 (arXiv:2403.12544): learned matrices, unmasked from the diagonal outwards.

Section 3, and the authors' script for W4A4 of the Llama models: as OmniQuant (its formats, rates, clipping and steps),
with an invertible matrix where that has a scale; off its diagonal it is multiplied by 0.1, and one diagonal after the
other joins. There matrices stand between queries and keys, and between values and output projection (one a head), where
they disappear; scales elsewhere. Here one matrix for every `block` channels stands in front of every input, online.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def affinequant(
    format: str = "int4_affine",
    activations: str | None = "int4_affine",
    block: int | None = 64,
    steps: int = 2560,
    rates: tuple[float, float] = (1e-3, 1e-2),
    alpha: float = 0.75,
    share: float = 0.1,
) -> Chain:
    """Learn matrices and ranges of each block, round the weights and their inputs. Catalogue G11.

    `share` multiplies what is off the diagonal. A block of None is one matrix for all channels.
    """
    learned = transforms.learn_maps(
        transforms.Banded(block, share, alpha),
        format,
        activations,
        optimizer=transforms.separate_rates(*rates),
        steps=steps,
        clip=True,
    )
    return transforms.chain(learned, () if activations is None else transforms.act_quantize(activations))
