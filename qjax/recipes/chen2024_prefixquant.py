"""PrefixQuant, by Chen et al. 2024 (arXiv:2410.05265): outlier tokens in a prefix, then one static scale a tensor.

The authors' script for W4A4KV4 without fine-tuning: rotations of the stream and the values' heads in the weights, of
queries, keys and down projections online; outlier tokens found at the down projections' inputs, more than 64 medians
large, and put in front of every sequence; weights symmetric, a scale an output; activations symmetric, one static scale
a tensor; ranges by a grid search. They search for the least error of a layer's output, which is here that of the
rounded values themselves, over a sample of tokens; keys and values have a dynamic scale a head here, theirs is static.
The blocks' fine-tuning is left out.
"""

from __future__ import annotations

from qjax import ranges, transforms
from qjax.formats import FULL, as_format
from qjax.transforms.contract import Chain


def prefixquant(
    format: str = "int4_channel",
    activations: str = "int4_tensor",
    cache: str | None = "int4",
    start: int = 1,
    ratio: float = 64.0,
    prefixed: bool = True,
    rotated: bool = True,
) -> Chain:
    """Rotate, put outlier tokens in front, round weights, inputs and the cache. Catalogue I6.

    `start` is the id of the tokenizer's first token (1 in Llama 2 and SmolLM2). Activations are static if their format
    has one scale for all tokens, else dynamic. `prefixed=False` and `rotated=False` are its baselines; None leaves the
    cache in float.
    """
    static = as_format(activations).across == FULL
    tokens = {"static": True, "range": ranges.mse(), "statistic": "reservoir"} if static else {}
    return transforms.chain(
        transforms.rotate(heads=False) if rotated else (),
        transforms.outlier_prefix(start, ratio) if prefixed else (),
        transforms.rtn(format, range=ranges.mse()),
        transforms.act_quantize(activations, **tokens),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
