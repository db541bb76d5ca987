"""Grids whose products are shifts: powers of two and of its roots, their sums, and OliVe's abfloat."""

from __future__ import annotations

import itertools

import numpy as np


def powers(bits: int, steps: int = 1, zero: bool = True, signed: bool = True) -> tuple[float, ...]:
    """Zero and powers of 2^(1/steps) downwards from 1, with their negatives: at most 2^bits values, ascending.

    The base is 2 or its square root in LogNet (Miyashita et al. 2016, arXiv:1603.01025; catalogue L1, L5), any root in
    Vogel et al. (ICCAD 2018; catalogue L6). Without `zero` the codes are a sign and an exponent, as in DenseShift (Li
    et al. 2023, arXiv:2208.09708; catalogue L8).

    >>> powers(3), powers(3, zero=False)[4:]
    ((-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0), (0.125, 0.25, 0.5, 1.0))
    """
    if bits < 1 + signed or steps < 1 or not (signed or zero):
        raise ValueError(f"powers need {1 + signed} bits, steps >= 1 and a sign or a zero, got {bits}, {steps}")
    count = 2 ** (bits - signed) - zero
    if count > 126 * steps:
        raise ValueError(f"{count} powers do not fit float32, {steps} a binade: take at least {-(-count // 126)} steps")
    return _mirrored(np.exp2(-np.arange(count)[::-1] / steps), zero, signed)


def log_middles(levels: tuple[float, ...], steps: int = 1) -> tuple[float, ...]:
    """The cuts of a `Table` of `powers` that rounds the logarithm: log|x| to the nearest multiple of log(2)/steps.

    Half a step below the smallest power begins zero; without a zero, the sign decides, and 0 is positive.
    """
    count = sum(v > 0 for v in levels)
    middle = np.exp2((0.5 - np.arange(count, 0, -1)) / steps)
    if 0 not in levels:
        middle[0] = 0.0
    if levels[0] < 0:
        middle = np.concatenate([-middle[::-1], middle if 0 in levels else middle[1:]])
    cuts = middle.astype(np.float32)
    # No float32 is a middle but zero: the least one above it starts the upper level.
    return tuple(np.where(cuts < middle, np.nextafter(cuts, np.float32(np.inf)), cuts).tolist())


def additive_powers(bits: int, signed: bool = True) -> tuple[float, ...]:
    """APoT: sums of one power of two, or zero, from each of several sets, divided by the largest (catalogue L2).

    Li, Dong and Wang, ICLR 2020 (arXiv:1909.13144): of b = bits - signed, each of n = b // 2 sets has two bits,
    {0, 2^-i, 2^-(i+n), 2^-(i+2n)} for set i; a bit left over is the set {0, 2^-2n}, and the last exponents of the
    others are one more.

    >>> additive_powers(4)[7:]
    (0.0, 0.1, 0.2, 0.3..., 0.4..., 0.6..., 0.8, 1.0)
    """
    b = bits - signed
    if not 1 <= b <= 8:
        raise ValueError(f"APoT has 1 to 8 bits beside the sign, got {bits} with signed={signed}")
    n, odd = divmod(b, 2)
    sets = [(0.0, 2.0**-i, 2.0 ** -(i + n), 2.0 ** -(i + 2 * n + odd)) for i in range(n)]
    sums = {sum(terms) for terms in itertools.product(*sets, *[(0.0, 2.0 ** (-2 * n))] * odd)}
    values = np.array(sorted(sums - {0.0}))
    return _mirrored(values / values[-1], True, signed)


def two_powers(bits: int) -> tuple[float, ...]:
    """SP2: plus or minus the sum of two powers of two of at most 1/2, or zeros (catalogue L3).

    Chang et al., "Mix and Match", HPCA 2021 (arXiv:2012.04240): of the bits beside the sign, m1 >= m2 choose among
    2^m1 and 2^m2 numbers, 1/2, 1/4, ... and zero. Equal sums are one value, so that codes are left over.

    >>> two_powers(4)[6:]
    (0.0, 0.125, 0.25, 0.5, 0.625, 0.75, 1.0)
    """
    if not 3 <= bits <= 8:
        raise ValueError(f"SP2 has 3 to 8 bits, got {bits}")
    m2 = (bits - 1) // 2
    m1 = bits - 1 - m2
    first, second = ([0.0, *(2.0**-i for i in range(1, 2**m))] for m in (m1, m2))
    sums = {a + b for a, b in itertools.product(first, second)}
    return _mirrored(np.array(sorted(sums - {0.0})), True, True)


def abfloat(exponent: int, mantissa: int, bias: int) -> tuple[float, ...]:
    """OliVe's float for outliers: plus or minus (2^mantissa + m) 2^(e + bias), the smallest left out.

    Guo et al., ISCA 2023 (arXiv:2304.07493), section 3.3; E2M1 of bias 2 starts above int4, of bias 3 above flint4
    (catalogue G8).

    >>> abfloat(2, 1, 2)[7:]
    (12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0)
    """
    if exponent < 1 or mantissa < 0 or exponent + mantissa > 7 or not 0 <= bias <= 32:
        raise ValueError(
            f"abfloat has 1 to 7 bits beside the sign and a bias of 0 to 32, got {exponent, mantissa, bias}"
        )
    values = [float((2**mantissa + m) << (e + bias)) for e in range(2**exponent) for m in range(2**mantissa)]
    return _mirrored(np.array(values[1:]), False, True)


def _mirrored(positive: np.ndarray, zero: bool, signed: bool) -> tuple[float, ...]:
    """Float32 levels: ascending `positive` ones, zero, and the negative ones."""
    values = [float(v) for v in positive.astype(np.float32)]
    return (*(-v for v in reversed(values if signed else [])), *[0.0] * zero, *values)
