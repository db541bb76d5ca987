"""QLLM, by Liu et al. 2023 (arXiv:2310.08041): outlier channels shared out between others, low-rank error correction.

Section 4, and the authors' script for W4A4 of LLaMA-7B: channels are taken apart and merged (at most a fifth of them
added), then matrices of rank 4 are learned in each block by AdamW at 5e-4, falling linearly to 0, in 10 epochs of 128
windows, one a step, and merged into the weights; weights with a zero point an output, activations with one a token.
There four blocks are learned at a time, norms too; here one, and the norms stay. The output projections, which the
authors do not reassemble, are treated like the other leaves.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import LowRankUpdate
from qjax.transforms.contract import Chain


def qllm(
    format: str = "int4_affine",
    activations: str = "int4_affine",
    ratio: float = 0.2,
    points: int = 100,
    rank: int = 4,
    steps: int = 1280,
    rate: float = 5e-4,
) -> Chain:
    """Reassemble the channels, round the inputs, learn low-rank updates and round the weights. Catalogue G12.

    `ratio` is the most channels that may be added, as a share; `points` the thresholds tried.
    """
    return transforms.chain(
        transforms.reassemble_channels(format, activations, points=points, ratio=ratio),
        transforms.act_quantize(activations),
        transforms.learn(
            LowRankUpdate(as_format(format), rank),
            optimizer=optax.adamw(optax.linear_schedule(rate, 0.0, max(steps, 1)), weight_decay=0.0),
            steps=steps,
        ),
    )
