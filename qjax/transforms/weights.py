"""Transforms of one weight: round-to-nearest and GPTQ.

The mathematics is in `qjax.solvers`; `qjax.transforms.matrices` brings it to the leaves of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qjax import solvers
from qjax.formats import Format, as_format
from qjax.qarray import QArray
from qjax.solvers.gptq import Factor, factor, sweep
from qjax.solvers.group_scales import GROUPS
from qjax.transforms.contract import Transform
from qjax.transforms.matrices import quantize_with


def rtn(fmt: Format | str, *, range: Any = None) -> Transform:
    """Round to nearest in a format, with a range estimator of `qjax.ranges` (default: the format's own rule).

    Needs no data. Catalogue E1; the baseline of every table.
    """
    return quantize_with(solvers.rtn, fmt, range=range)


def gptq(
    fmt: Format | str,
    *,
    groups: Literal["static", "stale", "fresh"] = "static",
    order: Literal["none", "activation"] = "none",
    damp: float = 0.01,
    block: int = 128,
    range: Any = None,
    dtype: Literal["float32", "float64"] = "float32",
) -> Transform:
    """GPTQ (Frantar et al. 2022, catalogue E3) in any format; see `qjax.solvers.gptq` for the conventions.

    Leaves that share an input share the factorization of their Gram matrix.
    """
    f = as_format(fmt)
    if groups not in GROUPS or order not in ("none", "activation") or not damp >= 0:
        raise ValueError(
            f"gptq: groups={groups!r}, order={order!r}, damp={damp}; give one of {', '.join(GROUPS)}, "
            "'none' or 'activation', and a damping of at least 0"
        )
    return quantize_with(
        _swept,
        f,
        name=f"gptq {f.name}"
        + ("" if groups == "static" else f" {groups}")
        + ("" if order == "none" else " act-order"),
        statistics=("gram",),
        prepare=lambda gram: {"factored": factor(gram, damp, order=order, dtype=dtype)},
        warn=lambda arguments: damping_warnings(arguments, damp),
        groups=groups,
        block=block,
        range=range,
    )


def _swept(w: jax.Array, factored: Factor, fmt: Format, **options: Any) -> QArray:
    return sweep(w, factored, fmt, **options)[0]


def damping_warnings(arguments: Mapping[str, Any], damp: float) -> tuple[str, ...]:
    """What the report says of the factor under "factored": a raised damping, dead inputs, a hopeless Gram matrix."""
    factored, out = arguments["factored"], []
    if bool(jnp.any(factored.fallback)):
        out.append("its Gram matrix is not positive definite at any damping tried: rounded to nearest")
    elif float(jnp.max(factored.damp)) > damp * 1.01:
        out.append(f"damping raised from {damp:g} to {float(jnp.max(factored.damp)):.3g}")
    if dead := int(jnp.sum(factored.dead)):
        out.append(f"{dead} input channels were zero in every calibration token; their weights are set to zero")
    return tuple(out)
