"""GPTQ written from its equations in plain float64 numpy: slow, obvious, and independent of qjax.

Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (2022), section 3.
The weight is `[K, N]` with the contraction axis first, so one step quantizes one *row* and spreads its error over the
rows that are still free. No lazy updates, no blocks of work: after every row the whole remaining matrix is current.

A number format is a pair of functions on one group `[g, N]`: `fit(group, whole) -> (step, offset)` and
`round(x, step, offset) -> (code, value)`. Steps are rounded to their storage type, as float32 arithmetic gives them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

F32 = np.float32


class Numbers(NamedTuple):
    """A number format: how a group's step and offset are chosen, and how values are rounded with them."""

    fit: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    round: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _stored(step: np.ndarray, storage: str) -> np.ndarray:
    dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[storage]
    return step.astype(F32).astype(dtype).astype(np.float64)


def _ratio(x: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The quotient as float32 arithmetic gives it: with absmax/7.5 the largest weight of a group is an exact tie."""
    return (x.astype(F32) / step.astype(F32)).astype(np.float64)


def symmetric(bits: int, convention: str = "half", storage: str = "bfloat16") -> Numbers:
    """Symmetric integers: absmax/(2^(b-1)-1/2), absmax/(2^(b-1)-1) or (signed max)/-2^(b-1)."""
    half = 2 ** (bits - 1)
    low, high = (-(half - 1), half - 1) if convention == "narrow" else (-half, half - 1)

    def fit(group: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group = group.astype(F32)
        if convention == "half":
            step = np.abs(group).max(0) / F32(half - 0.5)
        elif convention == "narrow":
            step = np.abs(group).max(0) / F32(half - 1)
        else:
            signed = np.take_along_axis(group, np.abs(group).argmax(0)[None], 0)[0]
            step = signed / F32(-half)
        step = _stored(step, storage)
        return np.where(step == 0, 1.0, step), np.zeros_like(step)

    def round_(x: np.ndarray, step: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        code = np.clip(np.rint(_ratio(x, step)), low, high)
        return code, code * step

    return Numbers(fit, round_)


def affine(bits: int, storage: str = "bfloat16") -> Numbers:
    """Unsigned integers with an integer zero point; the range always includes zero."""
    top = 2**bits - 1

    def fit(group: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group = group.astype(F32)
        low, high = np.minimum(group.min(0), F32(0)), np.maximum(group.max(0), F32(0))
        step = _stored((high - low) / F32(top), storage)
        step = np.where(step == 0, 1.0, step)
        return step, np.clip(np.rint(-low / step), 0, top)

    def round_(x: np.ndarray, step: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        code = np.clip(np.rint(_ratio(x, step)) + offset, 0, top)
        return code, (code - offset) * step

    return Numbers(fit, round_)


E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _round_e2m1(x: np.ndarray) -> np.ndarray:
    """Nearest e2m1 value, ties to the even code, saturating."""
    magnitude = np.minimum(np.abs(x), 6.0)
    code = np.zeros(x.shape, int)
    for low, (a, b) in enumerate(itertools.pairwise(E2M1)):
        middle = (a + b) / 2
        code = np.where((magnitude > middle) | ((magnitude == middle) & (low % 2 == 1)), low + 1, code)
    return np.sign(x) * E2M1[code]


def mxfp4() -> Numbers:
    """OCP MXFP4, floor rule: one power-of-two step 2^(floor(log2 absmax) - 2) for a block of 32."""

    def fit(group: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, exponent = np.frexp(np.abs(group.astype(F32)).max(0))
        step = np.ldexp(1.0, exponent - 1 - 2)
        return step, np.zeros_like(step)

    def round_(x: np.ndarray, step: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = _round_e2m1(_ratio(x, step))
        return value, value * step

    return Numbers(fit, round_)


def either(*options: Numbers) -> Numbers:
    """Of symmetric formats, for each group and column the one of least squared error; its index is the offset."""

    def fit(group: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.stack([numbers.fit(group, whole)[0] for numbers in options])
        values = np.stack([numbers.round(group, s, 0 * s)[1] for numbers, s in zip(options, steps, strict=True)])
        index = ((values - group) ** 2).sum(1).argmin(0)
        return np.take_along_axis(steps, index[None], 0)[0], index

    def round_(x: np.ndarray, step: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = [numbers.round(x, step, 0 * step) for numbers in options]
        code, value = (np.choose(offset, part) for part in zip(*both, strict=True))
        return code, value

    return Numbers(fit, round_)


def nvfp4() -> Numbers:
    """NVFP4: e4m3 steps for blocks of 16 under one float32 scale absmax/(6*448) of the whole original matrix."""

    def fit(group: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tensor = F32(np.abs(whole.astype(F32)).max()) / F32(6 * 448)
        wanted = np.abs(group.astype(F32)).max(0) / F32(6) / tensor
        block = np.minimum(wanted, F32(448)).astype(ml_dtypes.float8_e4m3fn).astype(F32)
        step = (block * tensor).astype(np.float64)
        return step, np.zeros_like(step)

    def round_(x: np.ndarray, step: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = _round_e2m1(_ratio(x, step))
        return value, value * step

    return Numbers(fit, round_)


def codebook(values: np.ndarray, storage: str = "float32") -> Numbers:
    """A table of values in increasing order (NF4), scaled by the group's absolute maximum."""
    values = np.asarray(values, np.float64)

    def fit(group: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = _stored(np.abs(group.astype(F32)).max(0) / F32(np.abs(values).max()), storage)
        return step, np.zeros_like(step)

    def round_(x: np.ndarray, step: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        code = np.abs(_ratio(x, step)[..., None] - values).argmin(-1)
        return code, values[code] * step

    return Numbers(fit, round_)


class Result(NamedTuple):
    """Codes and values `[K, N]`, and the objective tr(E' (H + damp) E) that the sweep minimizes."""

    codes: np.ndarray
    values: np.ndarray
    objective: float


def rtn(w: np.ndarray, numbers: Numbers, group: int) -> Result:
    """Round every group to nearest on its own."""
    return gptq(w, np.eye(len(w)), numbers, group, damp=0.0)


def gptq(
    w: np.ndarray,
    gram: np.ndarray,
    numbers: Numbers,
    group: int,
    *,
    groups: str = "static",
    order: str = "none",
    damp: float = 0.01,
    block: int = 128,
) -> Result:
    """Quantize the rows of `w [K, N]` one after the other, each error repaired by the rows that remain.

    `groups`: when a group's scale is fixed, counted from the first of its rows to be quantized: "static" on the
    original weights, "stale" on the weights at the start of that row's block, "fresh" on the current weights.
    `order`: "none", or "activation": rows by falling diagonal of the Gram matrix; groups keep their original members.
    """
    w, h = w.astype(np.float64).copy(), gram.astype(np.float64).copy()
    rows = len(w)
    diagonal = np.diag(h).copy()
    w[diagonal == 0] = 0
    h[diagonal == 0, diagonal == 0] = 1
    h[np.diag_indices(rows)] += damp * np.diag(h).mean()
    original = w.copy()

    sequence = np.arange(rows) if order == "none" else np.argsort(-diagonal, kind="stable")
    inverse = np.linalg.inv(h[np.ix_(sequence, sequence)])
    upper = np.linalg.cholesky(inverse).T

    codes, values = np.zeros_like(w), np.zeros_like(w)
    fitted: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    objective = 0.0
    for k, row in enumerate(sequence):
        if k % block == 0:
            at_block_start = w.copy()
        number = row // group
        if number not in fitted:
            source = {"static": original, "stale": at_block_start, "fresh": w}[groups]
            fitted[number] = numbers.fit(source[number * group : (number + 1) * group], original)
        step, offset = fitted[number]
        codes[row], value = numbers.round(w[row], step, offset)
        values[row] = value.astype(F32)  # a decoded value is a float32
        error = (w[row] - values[row]) / upper[k, k]
        objective += float((error**2).sum())
        w[sequence[k + 1 :]] -= np.outer(upper[k, k + 1 :], error)
    return Result(codes, values, objective)
