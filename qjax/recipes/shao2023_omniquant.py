"""OmniQuant, by Shao et al. 2023 (arXiv:2308.13137): learned clipping of weights, learned scales before them.

Section 3, and the authors' script for W4A4 of the Llama models: in each block, a share of both ends of every output's
range and a scale for each input channel, by AdamW at 1e-2 and 1e-3 in 20 epochs of 128 windows, one a step; weights
with a zero point an output, activations with one a token. Scales begin as SmoothQuant's with alpha 0.75, shares at
sigmoid(4). Channel shifts, which the authors use where a LayerNorm can take them, are `shift=True`; their scale between
queries and keys is left out, and all inputs are scaled where they leave out the down projections.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def omniquant(
    format: str = "int4_affine",
    activations: str | None = "int4_affine",
    steps: int = 2560,
    rates: tuple[float, float] = (1e-3, 1e-2),
    alpha: float | None = 0.75,
    shift: bool = False,
    augmented: bool = False,
) -> Chain:
    """Learn scales and ranges of each block, round the weights and their inputs. Catalogue G10.

    `rates` are those of scales and ranges; `augmented` adds the authors' second term, the float block on the quantized
    input. `alpha` None learns the ranges alone, as the authors do for weights only; activations None: float.
    """
    learned = transforms.learn_maps(
        None if alpha is None else transforms.Scales(alpha, shift),
        format,
        activations,
        optimizer=transforms.separate_rates(*rates),
        steps=steps,
        clip=True,
        augmented=augmented,
    )
    return transforms.chain(learned, () if activations is None else transforms.act_quantize(activations))
