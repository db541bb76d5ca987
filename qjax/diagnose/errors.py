"""What rounding did: how much became zero, how much was clipped and how much rounded, and how far each site moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qjax.coding import encode
from qjax.metrics import cosine, kl_divergence, mse, sqnr
from qjax.qarray import Grid, QArray
from qjax.quantization import dequantize


def quantization_kernel(rounded: Array) -> Array:
    """Share of elements that became zero, float32: CrossQuant's quantization kernel (arXiv:2410.07505; catalogue T15).

    The kernel of Q is {x: Q(x) = 0} over all elements; the authors find INT8 activations harmless below 19 % for OPT
    and below 1 % for LLaMA.

    Args:
        rounded: what the quantizer makes of a tensor, any shape.

    >>> from qjax.quantization import quantize
    >>> quantization_kernel(dequantize(quantize(jnp.array([[127.0, 0.4, -3.0, 0.0]]), "int8_narrow", axis=-1))).item()
    0.5
    """
    return jnp.mean((rounded == 0).astype(jnp.float32))


class ErrorParts(NamedTuple):
    """Mean squares of the two parts of an error; their sum is the mean squared error."""

    clipped: Array
    rounded: Array


@jax.jit
def clip_and_round(x: Array, q: QArray) -> ErrorParts:
    """The mean squared error of `q` for x in what clipping and what rounding adds (catalogue T16).

    An element beyond its block's largest or smallest value is clipped, any other rounded. A smaller scale moves error
    from one part to the other: rounding falls with its square (s^2 / 12 for evenly spaced values), clipping grows.

    Args:
        x: the tensor `q` stands for, of its shape.
        q: the quantized array.

    Raises:
        ValueError: shapes differ.

    >>> from qjax.quantization import fit
    >>> x = jnp.array([[0.4, 1.0, 2.0, 300.0]])
    >>> grid = fit(jnp.array([[0.0, 1.0, 2.0, 127.0]]), "int8_narrow_f32", axis=-1)
    >>> parts = clip_and_round(x, encode(grid, x))
    >>> round(parts.clipped.item(), 2), round(parts.rounded.item(), 2)
    (7482.25, 0.04)
    """
    if x.shape != q.shape:
        raise ValueError(f"clip_and_round: x has shape {x.shape} and q {q.shape}")
    x, y = x.astype(jnp.float32), dequantize(q).astype(jnp.float32)
    grid = Grid(q.scales, q.offset, q.table, q.meta)
    far = jnp.float32(jnp.finfo(jnp.float32).max)
    low, high = (dequantize(encode(grid, jnp.full(x.shape, end))).astype(jnp.float32) for end in (-far, far))
    beyond = (x < low) | (x > high)
    square = (x - y) ** 2
    zero = jnp.zeros_like(square)
    return ErrorParts(jnp.mean(jnp.where(beyond, square, zero)), jnp.mean(jnp.where(beyond, zero, square)))


class Damage(NamedTuple):
    """How far a tensor is from its reference: signal to noise in dB, mean squared error, cosine, KL in nats.

    `kl` is KL(softmax(reference) || softmax(x)), the mean over all but the last axis; it means something for logits.
    """

    sqnr: Array
    mse: Array
    cosine: Array
    kl: Array


@jax.jit
def damage(values: Mapping[str, Array], reference: Mapping[str, Array]) -> dict[str, Damage]:
    """The standard measures at every site, layer by layer and end to end (catalogue T17).

    Args:
        values: {site: array} of the model at hand, such as from `qjax.captured`.
        reference: the same of the float model.

    Raises:
        ValueError: a site that only one of them has.

    >>> x = jnp.array([[1.0, 2.0]])
    >>> float(damage({"layers/0": 1.1 * x}, {"layers/0": x})["layers/0"].sqnr.round())
    20.0
    """
    if values.keys() != reference.keys():
        raise ValueError(f"damage: sites {sorted(values.keys() ^ reference.keys())} have a value on one side only")
    return {
        site: Damage(sqnr(x, r), mse(x, r), cosine(x, r), jnp.mean(kl_divergence(x, r)))
        for site, x in values.items()
        for r in (reference[site],)
    }
