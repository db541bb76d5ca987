"""MiLo: a mixture of low-rank compensators (Huang et al. 2025, arXiv:2504.02658).

Catalogue F8. HQQ at 3 bits and a low-rank term in turns, the term itself in 3 bits; experts, of which few tokens see
each, take thinner terms than what every token meets (the authors' Mixtral: 32 beside 1024, of 4096 channels). Their
ranks by an expert's kurtosis or by how often it is chosen are tables measured on two models, and are not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qjax import solvers
from qjax.formats import as_format
from qjax.trace.use import Use
from qjax.transforms import alternate, chain, masked
from qjax.transforms.contract import Chain


def milo(
    format: str = "int3_g64_affine",
    rank: int = 64,
    expert_rank: int | None = None,
    steps: int = 11,
    store: str = "int3_g64",
) -> Chain:
    """HQQ and low-rank terms in turns; `expert_rank` for stacked experts, of models that have them. Catalogue F8."""
    f = as_format(format)
    if f.offset == "zero_point":
        f = dataclasses.replace(f, offset="minimum")
    dense = alternate(f, rank, steps=steps, store=store, solver=solvers.hqq)
    if expert_rank is None:
        return chain(dense)

    def stacked(path: str, use: Use, plan: Mapping[str, Any]) -> bool:
        return len(use.matrix_shape) > 2

    def single(path: str, use: Use, plan: Mapping[str, Any]) -> bool:
        return not stacked(path, use, plan)

    thin = alternate(f, expert_rank, steps=steps, store=store, solver=solvers.hqq)
    return chain(masked(dense, single), masked(thin, stacked))
