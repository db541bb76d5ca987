"""GPTQT: quantize large language models twice to push the efficiency (Guo, Lang, Ren 2024, arXiv:2407.02891).

Catalogue E21. First to `first` bits linearly, then to fewer bits of binary coding, the scale searched again in between;
GPTQ around it.
"""

from __future__ import annotations

from typing import Literal

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def gptqt(format: str = "int3", first: int = 4, order: Literal["none", "activation"] = "none") -> Chain:
    """Binary codes inside an integer grid of `first` bits, rounded by GPTQ. Catalogue E21."""
    f = as_format(format)
    name = f"gptqt {f.name} of {first} bits"
    return chain(quantize_with(solvers.gptqt, f, name=name, statistics=("gram",), first=first, order=order))
