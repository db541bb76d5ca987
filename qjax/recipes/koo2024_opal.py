"""OPAL, by Koo et al. 2024 (arXiv:2409.05902): microscaled inputs whose largest values stay in bfloat16.

Section 3: inputs in blocks of 128 integers under a power of two, the four largest magnitudes of each in bfloat16, so
that the next largest sets the scale; 4 bits behind a norm, 7 for the sensitive inputs (the output and the down
projections, by name in `wide`). Weights in 4 bits by OWQ there, with the few weak channels in float; here by round to
nearest in groups. The logarithmic softmax is left out.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from qjax import transforms
from qjax.transforms.contract import Chain


def opal(
    format: str = "int4_g128",
    activations: tuple[str, str] = ("int4_g128_floor_e8m0", "int7_g128_floor_e8m0"),
    keep: int = 4,
    wide: tuple[str, ...] = ("*/o", "*/down"),
) -> Chain:
    """Rounded weights; inputs in the first format, those of leaves named `wide` in the second. Catalogue G28."""

    def sensitive(path: str, use: Any, plan: Any) -> str:
        del use, plan
        return "wide" if any(fnmatch.fnmatchcase(path, pattern) for pattern in wide) else "narrow"

    rounding = {
        name: transforms.act_quantize(f, keep=keep) for name, f in zip(("narrow", "wide"), activations, strict=True)
    }
    return transforms.chain(transforms.rtn(format), transforms.partition(rounding, sensitive))
