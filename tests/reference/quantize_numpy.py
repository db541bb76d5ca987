"""Quantization of one matrix [K, N] with loops and exact rounding, written from the formats' definitions."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from qjax.formats import E4M3, Choice, Float, Format, Int
from tests.reference.elements_exact import nearest_codes

F32 = np.float32
FULL = -1


def nearest(e, y: np.ndarray) -> np.ndarray:
    """The values of element `e` nearest to float32 `y`, ties to the even code."""
    levels, values = e.levels(), e.values()
    codes = np.array([np.flatnonzero(values == level)[0] for level in levels])
    even = levels % 2 == 0 if isinstance(e, Int) else codes % 2 == 0
    if isinstance(e, Float) and e.mantissa == 0 and not e.zero:  # powers of two alone: magnitudes go up, as in E8M0
        return (np.sign(y + F32(0)) + (y == 0)) * nearest_magnitude(levels, np.abs(y))
    return levels[nearest_codes(levels, even, y.ravel())].reshape(y.shape).astype(F32)


def nearest_magnitude(levels: np.ndarray, y: np.ndarray) -> np.ndarray:
    positive = levels[levels > 0]
    return positive[nearest_codes(positive, np.full(len(positive), True), y.ravel())].reshape(y.shape).astype(F32)


def power_of_two(rule: str, e, reach: float, amax: np.float32) -> np.float32:
    """The MX scale of a block, by the arithmetic of real numbers."""
    top = int(np.floor(np.log2(e.max)))
    if rule == "rceil":
        fraction, exponent = np.frexp(F32(amax) / F32(reach))
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
    if isinstance(fmt.rule, Choice):
        return max(scale_of(c, low, high) for c in fmt.candidates)
    e, amax = fmt.element, max(-low, high)
    reach = e.max if fmt.reach is None else fmt.reach
    if amax == 0:
        return F32(0)
    if fmt.rule == "absmax":
        return F32(amax) / F32(reach)
    if fmt.rule == "half":
        return F32(amax) / F32((2**e.bits - 1) / 2)
    if fmt.rule == "signed":
        return F32(high if high >= -low else low) / F32(e.min)
    if fmt.rule == "minmax":
        return F32(F32(high) - F32(low)) / F32(e.max - e.min)
    return power_of_two(fmt.rule, e, reach, amax)


def stored(fmt: Format, scales: np.ndarray, level: np.ndarray | None = None) -> np.ndarray:
    """The scales of all blocks as they come back from storage; 0 marks a block of zeros.

    `level`: the scales that the outer level is fitted to, if not the same.
    """
    if isinstance(fmt.scale, str):
        # Without a zero, a block of zeros comes as near to it as a scale can.
        scales = np.where(scales == 0, F32(1) if 0 in fmt.element.levels() else np.finfo(F32).tiny, scales)
        if fmt.scale == "float8_e4m3fn":
            return nearest(E4M3, np.maximum(scales, F32(2.0**-9)))
        return scales.astype(getattr(ml_dtypes, fmt.scale, fmt.scale)).astype(F32)
    inner, level = fmt.scale, scales if level is None else level
    out = np.empty_like(scales)
    rows, columns = tile(scales.shape, inner)
    for i in range(0, scales.shape[0], rows):
        for j in range(0, scales.shape[1], columns):
            at = np.s_[i : i + rows, j : j + columns]
            peak = level[at].max() or F32(1)
            part, whole = (np.where(p > 0, p, peak) for p in (scales[at], level[at]))
            if inner.offset is None:
                outer = F32(1) if inner.scale is None else scale_of(inner, -whole.max(), whole.max())
                outer = outer if inner.scale in (None, "float32") else outer.astype(inner.scale).astype(F32)
                smallest = inner.element.levels()[inner.element.levels() > 0][0]
                kept = np.where(scales[at] > 0, part, F32(0))
                out[at] = nearest(inner.element, (np.maximum(kept, smallest * outer) / outer).astype(F32)) * outer
            else:
                low, high = whole.min(), whole.max()
                step = F32(1) if low == high else F32(F32(high) - F32(low)) / F32(255)
                bits = (step.view(np.int32) + 0x80) & ~0xFF
                step = np.int32(bits).view(F32)
                codes = np.clip(np.rint((part - low) / step), 0, 255).astype(F32)
                out[at] = codes * step + low
    return out


def tile(shape: tuple[int, int], inner: Format) -> tuple[int, int]:
    """How many scales along each axis of `shape` share a step."""
    if inner.block == FULL:
        return shape[0], shape[1] if inner.across == FULL else inner.across
    rows = max(d for d in range(1, inner.block + 1) if shape[0] % d == 0)
    if rows < shape[0]:
        return rows, 1
    return rows, max(d for d in range(1, inner.block // rows + 1) if shape[1] % d == 0)


def cross(w: np.ndarray, fmt: Format) -> np.ndarray:
    """CrossQuant with blocks along -2: t is a column's largest magnitude, c a row's."""
    a, e = F32(fmt.alpha), fmt.element
    t, c = np.abs(w).max(0, keepdims=True), np.abs(w).max(1, keepdims=True)
    t, c = (np.maximum(m, F32(np.finfo(F32).tiny * e.max * (1 + 2.0**-7))) for m in (t, c))
    scale = (t**a) * (c ** F32(1 - fmt.alpha) / F32(e.max))
    return nearest(e, (w / scale).astype(F32)) * scale


def options(w: np.ndarray, fmt: Format) -> list[np.ndarray]:
    """What each candidate of a choice makes of every block, under the level they share."""
    return [_quantize(w, c, fmt) for c in fmt.candidates]


def quantize(w: np.ndarray, fmt: Format) -> np.ndarray:
    """What dequantize(quantize(w, fmt, axis=-2)) must be, for finite w and blocks that divide."""
    if fmt.scale is None:
        return nearest(fmt.element, w)
    return cross(w, fmt) if fmt.alpha is not None else _quantize(w, fmt, fmt)


def _quantize(w: np.ndarray, fmt: Format, whole: Format) -> np.ndarray:
    e, (k, n) = fmt.element, w.shape
    g, h = size(fmt, w.shape)
    parts = [[w[i : i + g, j : j + h] for j in range(0, n, h)] for i in range(0, k, g)]

    def ends(p: np.ndarray) -> tuple[np.float32, np.float32]:
        return (min(p.min(), F32(0)), max(p.max(), F32(0))) if fmt.offset == "zero_point" else (p.min(), p.max())

    level, scales = (np.array([[scale_of(f, *ends(p)) for p in row] for row in parts], F32) for f in (whole, fmt))
    scales = stored(fmt, scales, level)
    if fmt.rule == "fpquant":
        scales = scales * F32(4 / 3)
    out = np.empty_like(w)
    for i, row in enumerate(parts):
        for j, p in enumerate(row):
            s, low = scales[i, j], ends(p)[0]
            if fmt.offset == "zero_point":
                z = np.clip(np.rint(-low / s), 0, e.max)
                value = (np.clip(np.rint(p / s) + z, 0, e.max) - z).astype(F32) * s
            elif fmt.offset == "float_zero":
                z = as_stored(-low / s, fmt)
                value = (np.clip(np.rint((p / s).astype(F32) + z), 0, e.max).astype(F32) - z) * s
            elif fmt.offset == "minimum":
                m = as_stored(low, fmt)
                value = nearest(e, ((p - m) / s).astype(F32)) * s + m
            else:
                value = nearest(e, (p / s).astype(F32)) * s
            out[i * g : (i + 1) * g, j * h : (j + 1) * h] = value
    return np.where(np.abs(out) < np.finfo(F32).tiny, F32(0), out)  # as XLA does with subnormals


def size(fmt: Format, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a block."""
    return shape[0] if fmt.block == FULL else fmt.block, shape[1] if fmt.across == FULL else fmt.across


def as_stored(value: np.float32, fmt: Format) -> np.float32:
    return F32(value).astype(getattr(ml_dtypes, fmt.scale, fmt.scale)).astype(F32)
