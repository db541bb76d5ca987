"""Round to nearest: the baseline of every weight-only table (catalogue E1)."""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def rtn(format: str = "int4_g64") -> Chain:
    """Each weight to its nearest representable value; no data. Catalogue E1, D1.

    >>> [t.name for t in rtn("int8")]
    ['rtn int8']
    """
    return transforms.chain(transforms.rtn(format))
