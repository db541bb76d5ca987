"""Three bits: `combined_two_bits` with another format (catalogue E4, E13, H2, J19).

Paper: none, as there.

Expected: the same order, with smaller effects.

    python -m experiments.run --config=configs/weight_only/combined_three_bits.py
"""

from __future__ import annotations

import ml_collections

from configs.weight_only import combined_two_bits


def get_config() -> ml_collections.ConfigDict:
    return combined_two_bits.get_config("combined_three_bits", "int3_g64_affine")
