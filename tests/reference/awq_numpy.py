"""AWQ's two searches from the paper's equations in float64 numpy, over the number formats of `gptq_numpy`.

Lin et al., "AWQ: activation-aware weight quantization for LLM compression and acceleration" (2023), section 3.2:
s = s_x^alpha, alpha* = argmin ‖Q(W diag(s)) diag(s)⁻¹ X - W X‖; then clipping of each group's range. Outputs are
measured on the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference.gptq_numpy import Numbers


def rounded(w: np.ndarray, numbers: Numbers, group: int) -> np.ndarray:
    """Every group of `group` rows of `w [K, N]` on its own grid."""
    out = np.empty(w.shape, np.float64)
    for start in range(0, len(w), group):
        part = w[start : start + group]
        out[start : start + group] = numbers.round(part, *numbers.fit(part, w))[1]
    return out


def scale(x: np.ndarray, alpha: float, relative: np.ndarray | None = None) -> np.ndarray:
    """s for one exponent; `relative` is Model Optimizer's weight scale."""
    s = np.mean(np.abs(x), axis=0) ** alpha
    if relative is not None:
        s = s / relative ** (1 - alpha)
    s = np.clip(s, 1e-4, 1e4)
    return s / np.sqrt(s.max() * s.min())


def relative_size(w: np.ndarray, group: int) -> np.ndarray:
    """mean over outputs of |w| / max |w| of its group."""
    size = np.abs(w).reshape(-1, group, w.shape[1])
    return (size / size.max(1, keepdims=True)).mean(2).reshape(-1)


def errors(
    ws: Sequence[np.ndarray],
    x: np.ndarray,
    numbers: Numbers,
    group: int,
    alphas: Sequence[float],
    weights: bool = False,
) -> list[float]:
    """‖X(W - Ŵ)‖² over all matrices, for every exponent."""
    relative = relative_size(np.concatenate(ws, axis=1), group) if weights else None
    out = []
    for alpha in alphas:
        s = scale(x, alpha, relative)[:, None].astype(np.float32)
        total = 0.0
        for w in ws:
            moved = rounded((s * w.astype(np.float32)), numbers, group) / s
            total += np.sum((x @ (w - moved)) ** 2)
        out.append(total)
    return out


def clipped(w: np.ndarray, x: np.ndarray, numbers: Numbers, group: int, points: int, tries: int) -> np.ndarray:
    """Every group of every output tries each clipping of its absmax and keeps the best for its share of the output."""
    out = np.empty(w.shape, np.float64)
    for start in range(0, len(w), group):
        rows = slice(start, start + group)
        for n in range(w.shape[1]):
            part = w[rows, n : n + 1]
            least = np.inf
            for i in range(tries):
                top = np.float32(1 - np.float32(i) / np.float32(points)) * np.abs(part).max()
                fitted = numbers.fit(np.clip(part, -top, top), w)
                values = numbers.round(part, *fitted)[1]
                error = np.sum((x[:, rows] @ (values - part)) ** 2)
                if error < least * (1 - 1e-9):
                    least, out[rows, n] = error, values[:, 0]
    return out
