"""quantized(fn): any JAX function on trees whose leaves may be operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from qjax.trace.arguments import traced
from qjax.trace.evaluation import Dequantized, Evaluation, Fallbacks, Log
from qjax.trace.interpreter import array, evaluate
from qjax.trace.leaf import operator
from qjax.trace.paths import is_leaf

__all__ = ["Dequantized", "quantized"]


def quantized(fn: Callable[..., Any], *, strict: bool = False, log: Log | None = None) -> Callable[..., Any]:
    """A function on trees with operators or QArrays as leaves: each multiplies as it is stored.

    Where no rule applies the leaf is dequantized: `strict=True` raises `Dequantized` naming leaf and primitive at the
    first one, `log` receives (path, primitive, shape) of each. NotAffine when an activation quantizer would be lost.
    A function whose arguments hold no operator runs unchanged. jit, grad, vmap and scan apply inside and outside.

    >>> import jax.numpy as jnp
    >>> from qjax.quantization import quantize
    >>> w = quantize(jnp.eye(8), "int8")
    >>> quantized(lambda p, x: x @ p["w"], strict=True)({"w": w}, jnp.ones((1, 8))).shape
    (1, 8)
    """

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not any(is_leaf(leaf) for leaf in jax.tree.leaves((args, kwargs), is_leaf=is_leaf)):
            return fn(*args, **kwargs)
        program = traced(fn, args, kwargs)
        tape = Evaluation(Fallbacks(strict, log))
        inputs = [operator(i.path, i.leaf) if is_leaf(i.leaf) else i.leaf for i in program.inputs]
        return program.rebuild([array(o, tape, None) for o in evaluate(program.jaxpr, inputs, tape)])

    return run
