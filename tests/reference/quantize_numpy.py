"""Quantization of one matrix [K, N] with loops and exact rounding, written from the formats' definitions."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from qjax.formats import E4M3, Float, Format, Int
from tests.reference.elements_exact import nearest_codes

F32 = np.float32
FULL = -1


def nearest(e, y: np.ndarray) -> np.ndarray:
    """The values of element `e` nearest to float32 `y`, ties to the even code."""
    levels, values = e.levels(), e.values()
    codes = np.array([np.flatnonzero(values == level)[0] for level in levels])
    even = levels % 2 == 0 if isinstance(e, Int) else codes % 2 == 0
    return levels[nearest_codes(levels, even, y.ravel())].reshape(y.shape).astype(F32)


def power_of_two(rule: str, e, amax: np.float32) -> np.float32:
    """The MX scale of a block, by the arithmetic of real numbers."""
    top = int(np.floor(np.log2(e.max)))
    if rule == "rceil":
        fraction, exponent = np.frexp(F32(amax) / F32(e.max))
        return F32(np.ldexp(1.0, exponent - 1 if fraction == 0.5 else exponent))
    fraction, exponent = np.frexp(float(amax))  # amax = fraction * 2^exponent, fraction in [1/2, 1)
    if rule == "even":
        mantissa = e.mantissa if isinstance(e, Float) else e.bits - 2
        fraction = np.floor(fraction * 2 ** (mantissa + 1) + 0.5) / 2 ** (mantissa + 1)
        exponent += int(fraction >= 1)
    if rule == "ceil" and fraction != 0.5:
        exponent += 1
    return F32(np.ldexp(1.0, max(exponent - 1 - top, -126)))


def scale_of(fmt: Format, low: np.float32, high: np.float32) -> np.float32:
    e, amax = fmt.element, max(-low, high)
    if amax == 0:
        return F32(0)
    if fmt.rule == "absmax":
        return F32(amax) / F32(e.max)
    if fmt.rule == "half":
        return F32(amax) / F32((2**e.bits - 1) / 2)
    if fmt.rule == "signed":
        return F32(high if high >= -low else low) / F32(e.min)
    if fmt.rule == "minmax":
        return F32(F32(high) - F32(low)) / F32(e.max - e.min)
    return power_of_two(fmt.rule, e, amax)


def stored(fmt: Format, scales: np.ndarray) -> np.ndarray:
    """The scales of all blocks as they come back from storage; 0 marks a block of zeros."""
    if isinstance(fmt.scale, str):
        scales = np.where(scales == 0, F32(1), scales)
        if fmt.scale == "float8_e4m3fn":
            return nearest(E4M3, scales)
        return scales.astype(getattr(ml_dtypes, fmt.scale, fmt.scale)).astype(F32)
    inner = fmt.scale
    if inner.offset is None:  # one tensor scale
        outer = F32(scales.max()) / F32(inner.element.max)
        smallest = inner.element.levels()[inner.element.levels() > 0][0]
        return nearest(inner.element, np.maximum(scales / outer, smallest).astype(F32)) * outer
    out = np.empty_like(scales)
    rows, columns = tile(scales.shape, inner.block)
    for i in range(0, scales.shape[0], rows):
        for j in range(0, scales.shape[1], columns):
            part = scales[i : i + rows, j : j + columns]
            part = np.where(part > 0, part, part.max() or F32(1))
            low, high = part.min(), part.max()
            step = F32(1) if low == high else F32(F32(high) - F32(low)) / F32(255)
            bits = (step.view(np.int32) + 0x80) & ~0xFF
            step = np.int32(bits).view(F32)
            codes = np.clip(np.rint((part - low) / step), 0, 255).astype(F32)
            out[i : i + rows, j : j + columns] = codes * step + low
    return out


def tile(shape: tuple[int, int], count: int) -> tuple[int, int]:
    rows = max(d for d in range(1, count + 1) if shape[0] % d == 0)
    if rows < shape[0]:
        return rows, 1
    return rows, max(d for d in range(1, count // rows + 1) if shape[1] % d == 0)


def quantize(w: np.ndarray, fmt: Format) -> np.ndarray:
    """What dequantize(quantize(w, fmt, axis=-2)) must be, for finite w and blocks that divide."""
    e, (k, n) = fmt.element, w.shape
    g = k if fmt.block == FULL else fmt.block
    h = n if fmt.across == FULL else fmt.across
    parts = [[w[i : i + g, j : j + h] for j in range(0, n, h)] for i in range(0, k, g)]
    widen = (lambda p: (min(p.min(), F32(0)), max(p.max(), F32(0)))) if fmt.offset else lambda p: (p.min(), p.max())
    scales = stored(fmt, np.array([[scale_of(fmt, *widen(p)) for p in row] for row in parts], F32))
    out = np.empty_like(w)
    for i, row in enumerate(parts):
        for j, p in enumerate(row):
            s = scales[i, j]
            if fmt.offset == "zero_point":
                z = np.clip(np.rint(-widen(p)[0] / s), 0, e.max)
                value = (np.clip(np.rint(p / s) + z, 0, e.max) - z).astype(F32)
            else:
                value = nearest(e, (p / s).astype(F32))
            out[i * g : (i + 1) * g, j * h : (j + 1) * h] = value * s
    return out
