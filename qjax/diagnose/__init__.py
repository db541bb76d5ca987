"""What makes a tensor hard to round, and what rounding did to it: pure functions of arrays.

Outliers by their published definitions (features, massive activations, super weights), how evenly a tensor's channels
are filled, and where an error comes from. `qjax.trace.sites.captured` gives the activations to ask about.
"""

from __future__ import annotations

from qjax.diagnose.errors import Damage, ErrorParts, clip_and_round, damage, quantization_kernel
from qjax.diagnose.evenness import Flatness, crest_factor, effective_levels, flatness
from qjax.diagnose.outliers import (
    SuperWeights,
    massive_activations,
    outlier_features,
    outlier_tokens,
    super_weights,
)

__all__ = [
    "Damage",
    "ErrorParts",
    "Flatness",
    "SuperWeights",
    "clip_and_round",
    "crest_factor",
    "damage",
    "effective_levels",
    "flatness",
    "massive_activations",
    "outlier_features",
    "outlier_tokens",
    "quantization_kernel",
    "super_weights",
]
