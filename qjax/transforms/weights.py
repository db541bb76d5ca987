"""Transforms of one weight: round-to-nearest, GPTQ, and GPTQ towards the float model's output.

The mathematics is in `qjax.solvers`; `qjax.transforms.matrices` brings it to the leaves of a model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qjax import solvers
from qjax.formats import Format, as_format
from qjax.qarray import QArray
from qjax.solvers import asymmetric
from qjax.solvers.gptq import Factor, factor, sweep
from qjax.solvers.group_scales import GROUPS
from qjax.transforms.contract import Transform
from qjax.transforms.matrices import quantize_with
from qjax.transforms.report import entries


def rtn(fmt: Format | str, *, range: Any = None) -> Transform:
    """Round to nearest in a format, with a range estimator of `qjax.ranges` (default: the format's own rule).

    Needs no data. Catalogue E1; the baseline of every table.
    """
    return quantize_with(solvers.rtn, fmt, range=range)


def round_by(
    method: Literal["gptaq", "gptq", "rtn"],
    fmt: Format | str,
    *,
    order: Literal["none", "activation"] = "none",
    range: Any = None,
) -> Transform:
    """`gptaq`, `gptq` or `rtn` by name: the weights of recipes whose papers have several. `order` is not RTN's.

    Raises ValueError for any other name.
    """
    methods = {"gptaq": functools.partial(gptaq, order=order), "gptq": functools.partial(gptq, order=order), "rtn": rtn}
    if method not in methods:
        raise ValueError(f"method {method!r} is none of {', '.join(methods)}")
    return methods[method](fmt, range=range)


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
    return quantize_with(
        _swept,
        f,
        name=_checked("gptq", f, groups, order, damp),
        statistics=("gram",),
        prepare=lambda gram: {"factored": factor(gram, damp, order=order, dtype=dtype)},
        warn=lambda arguments: damping_warnings(arguments, damp),
        groups=groups,
        block=block,
        range=range,
    )


def gptaq(
    fmt: Format | str,
    *,
    alpha: float = 0.25,
    compensation: float = 0.0,
    groups: Literal["static", "stale", "fresh"] = "static",
    order: Literal["none", "activation"] = "none",
    damp: float = 0.01,
    block: int = 128,
    range: Any = None,
) -> Transform:
    """GPTAQ, and ResComp where `compensation` is not 0 (catalogue E4, E5); see `qjax.solvers.asymmetric`.

    The float stream runs beside the quantized one, and `run` measures a block sequentially, as the authors' code does;
    leaves that share an input share the factor and both corrections.
    """
    f = as_format(fmt)

    def prepare(gram: jax.Array, cross_gram: jax.Array) -> dict[str, Any]:
        factored, carry = asymmetric.prepare(
            gram, cross_gram, alpha=alpha, compensation=compensation, order=order, damp=damp
        )
        return {"factored": factored, "carry": carry}

    return quantize_with(
        _swept,
        f,
        name=_checked("rescomp" if compensation else "gptaq", f, groups, order, damp),
        statistics=("gram", "cross_gram"),
        prepare=prepare,
        warn=lambda arguments: damping_warnings(arguments, damp),
        groups=groups,
        block=block,
        range=range,
    )


def _checked(method: str, fmt: Format, groups: str, order: str, damp: float) -> str:
    """The method's name in reports; ValueError for options of the sweep that do not exist."""
    if groups not in GROUPS or order not in ("none", "activation") or not damp >= 0:
        raise ValueError(
            f"{method}: groups={groups!r}, order={order!r}, damp={damp}; give one of {', '.join(GROUPS)}, "
            "'none' or 'activation', and a damping of at least 0"
        )
    parts = [method, fmt.name, "" if groups == "static" else groups, "" if order == "none" else "act-order"]
    return " ".join(part for part in parts if part)


def _swept(w: jax.Array, factored: Factor, fmt: Format, **options: Any) -> QArray:
    return sweep(w, factored, fmt, **options)[0]


def damping_warnings(arguments: Mapping[str, Any], damp: float) -> tuple[str, ...]:
    """What the report says of the factor under "factored": a raised damping, dead inputs, a hopeless Gram matrix."""
    factored, out = arguments["factored"], []
    if bool(jnp.any(factored.fallback)):
        out.append(
            f"{entries(factored.fallback)}: its Gram matrix is zero, or not positive definite at any damping tried: "
            "rounded to nearest"
        )
    elif float(jnp.max(factored.damp)) > damp * 1.01:
        out.append(f"damping raised from {damp:g} to {float(jnp.max(factored.damp)):.3g}")
    if dead := int(jnp.sum(factored.dead)):
        out.append(f"{dead} input channels were zero in every calibration token; their weights are set to zero")
    return tuple(out)
