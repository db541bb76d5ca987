"""CushionCache, by Son et al. 2024 (arXiv:2406.12016): a prefix searched and tuned for W8A8 with one scale a tensor.

Tokens are put in front greedily, as long as each halves the rounding error of the activations behind it, then their
keys and values are trained on the model's loss and that error. The paper was at hand by its abstract only: the
candidates, the half, the weight of the error, Adam's rate and the number of steps are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from qjax import transforms
from qjax.transforms.contract import Chain


def cushioncache(
    format: str = "int8_channel",
    activations: str = "int8_tensor",
    static: bool = True,
    candidates: Sequence[int] = tuple(range(256)),
    threshold: float = 0.5,
    steps: int = 100,
) -> Chain:
    """Search and tune a prefix, round weights and inputs. Catalogue I7.

    `candidates` are ids of tokens to try; the first 256 are the special tokens and the bytes of many vocabularies.
    Needs a loss if `steps` are to be taken.
    """
    return transforms.chain(
        transforms.search_prefix(candidates, activations, threshold=threshold),
        transforms.soften_prefix(activations, steps=steps) if steps else (),
        transforms.rtn(format),
        transforms.act_quantize(activations, static=static),
    )
