"""K-sort, by Trukhanov and Soloveychik 2024 (arXiv:2403.20137): keys in block formats whose blocks hold like channels.

Rows of the key projection are sorted by their norms, within each head here, and those of the query projection alike;
then keys are cached in block floating point, mantissas of 4 bits that share an exponent of 8: MXINT4 is that with
blocks of 32 channels, "int4_g64_floor_e8m0" with 64.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def sorted_keys(keys: str = "mxint4", values: str | None = None, ordered: bool = True) -> Chain:
    """Keys of a cache in a block format, channels of like size together. Catalogue N5.

    `ordered=False` is the baseline. None leaves the values in float.
    """
    return transforms.chain(transforms.cache_quantize(keys, values, ordered=ordered))
