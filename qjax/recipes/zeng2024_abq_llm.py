"""ABQ-LLM, by Zeng et al. 2024 (arXiv:2408.08554): blocks learned towards the float distribution, balanced levels.

The authors' code: as OmniQuant, learned scales and ranges of each block, against the float block on the float and on
the quantized input, by the squared distance and the logarithm of the cosine; the product of two learned vectors added
to the down projections (there in the first three and the last four blocks, here in all); and for 2 bits the balanced
levels -2, -1, 0, 1, 2 without a zero point (the paper's 2*). The divergence of the attention maps is left out, and any
bit width as products of bit planes is a kernel, not a number.
"""

from __future__ import annotations

from qjax import transforms
from qjax.formats import FULL, Format, Table
from qjax.reconstruct import squared_distance_and_cosine
from qjax.transforms.contract import Chain

BALANCED = Format(Table("balanced2", (-2.0, -1.0, 0.0, 1.0, 2.0)), FULL, scale="float32")
"""Five symmetric levels under a scale an output: the paper's 2* bits, 3 as they are stored here."""


def abq_llm(
    format: str | Format = BALANCED,
    activations: str | None = "int8_affine",
    steps: int = 2560,
    rates: tuple[float, float] = (1e-3, 1e-2),
    alpha: float = 0.75,
    corrected: tuple[str, ...] = ("*/down",),
) -> Chain:
    """Learn scales, ranges and corrections of each block, round the weights and their inputs. Catalogue G18."""
    learned = transforms.learn_maps(
        transforms.Scales(alpha),
        format,
        activations,
        optimizer=transforms.separate_rates(*rates),
        steps=steps,
        clip=True,
        augmented=True,
        corrected=corrected,
        distance=squared_distance_and_cosine,
    )
    return transforms.chain(learned, () if activations is None else transforms.act_quantize(activations))
