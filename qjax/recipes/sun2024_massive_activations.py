"""Massive activations in large language models, by Sun et al. 2024 (arXiv:2402.17762): interventions on them.

Section 3: the few massive activations are set to zero, or to their mean over many sequences, in the layer where they
first appear. Nothing is quantized.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def pinned_massive(fill: Literal["mean", "zero"] = "mean", magnitude: float = 1000.0) -> Chain:
    """Massive activations of the residual stream held at their mean, or at zero. Catalogue T5."""
    return transforms.chain(transforms.pin_massive(fill, magnitude=magnitude))
