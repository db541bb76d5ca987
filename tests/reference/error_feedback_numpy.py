"""OBQ, GPTAQ, ResComp and GPFQ from their equations in float64 numpy: no blocks, no lazy updates, no Gram shortcuts.

Weights are `[K, N]`. `round_row(k, x)` maps a row `[N]` (or one entry) to the grid of row k; scales are fixed before.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RoundRow = Callable[[int, np.ndarray], np.ndarray]


def damped(gram: np.ndarray, damp: float) -> np.ndarray:
    gram = gram.astype(np.float64)
    return gram + damp * np.mean(np.diagonal(gram)) * np.eye(len(gram))


def obq(w: np.ndarray, gram: np.ndarray, round_row: RoundRow, reach: np.ndarray, damp: float = 0.01) -> np.ndarray:
    """Frantar and Alistarh 2022, algorithm 3: every column alone; the inverse is taken afresh for the free rows.

    `reach [K, N]`: an entry farther than this from its rounded value is an outlier and goes first.
    """
    h = damped(gram, damp)
    out = np.zeros_like(w, dtype=np.float64)
    for n in range(w.shape[1]):
        x, free = w[:, n].astype(np.float64).copy(), list(range(len(w)))
        while free:
            inverse = np.linalg.inv(h[np.ix_(free, free)])
            error = np.array([x[k] - round_row(k, x[k : k + 1].repeat(w.shape[1]))[n] for k in free])
            cost = error**2 / np.diagonal(inverse)
            cost[np.abs(error) > reach[free, n] * (1 + 1e-6)] = 0
            i = int(np.argmin(cost))
            k = free[i]
            out[k, n] = x[k] - error[i]
            x[free] -= error[i] / inverse[i, i] * inverse[:, i]
            free.pop(i)
    return out


def gptaq(
    w: np.ndarray,
    x: np.ndarray,
    x_float: np.ndarray,
    round_row: RoundRow,
    alpha: float,
    compensation: float = 0.0,
    damp: float = 0.01,
) -> np.ndarray:
    """Theorem 4.2 of GPTAQ and equation 17 of ResComp, one neuron's residual at a time, least squares on free rows.

    After row k is rounded, rows j > k move by the least-squares answer (under the damped H of the free rows) to its
    rounding error on x, to alpha * w_k (x_float - x)_k, and to compensation * (w0_k - w_k) x_float_k.
    """
    h = damped(x.T @ x, damp)
    now, out = w.astype(np.float64).copy(), np.zeros_like(w, dtype=np.float64)
    for k in range(len(w)):
        out[k] = round_row(k, now[k])
        free = np.arange(k + 1, len(w))
        if not len(free):
            break
        inverse = np.linalg.inv(h[np.ix_(free, free)])
        residual = alpha * np.outer(x_float[:, k] - x[:, k], now[k])
        residual += compensation * np.outer(x_float[:, k], w[k] - now[k])
        # The error of row k on the free ones: H_fk (w_k - q_k), damping included, as GPTQ has it.
        pull = np.outer(h[free, k], now[k] - out[k]) + x[:, free].T @ residual
        now[free] += inverse @ pull
    return out


def gpfq(w: np.ndarray, x: np.ndarray, x_float: np.ndarray, round_row: RoundRow) -> np.ndarray:
    """Zhang, Zhou and Saab 2022, equation 4, with the path u kept over the samples."""
    u, out = np.zeros((len(x), w.shape[1])), np.zeros_like(w, dtype=np.float64)
    for t in range(len(w)):
        wanted = u + np.outer(x_float[:, t], w[t])
        out[t] = round_row(t, x[:, t] @ wanted / (x[:, t] @ x[:, t]))
        u = wanted - np.outer(x[:, t], out[t])
    return out


def ldlq(w: np.ndarray, gram: np.ndarray, round_row: RoundRow, damp: float = 0.01) -> np.ndarray:
    """QuIP's equation 2, rows in order: q_k = Q(w_k + Σ_{j<k} (w_j - q_j) a_jk).

    H = (A + I) D (A + I)ᵀ with A strictly upper: only original weights and errors made so far, no repaired weight.
    """
    h = damped(gram, damp)
    n = len(h)
    d, a = np.zeros(n), np.eye(n)
    rest = h.copy()
    for k in reversed(range(n)):
        d[k] = rest[k, k]
        a[: k + 1, k] = rest[: k + 1, k] / d[k]
        rest = rest - d[k] * np.outer(a[:, k], a[:, k]) * (np.arange(n)[:, None] <= k) * (np.arange(n)[None] <= k)
    out = np.zeros_like(w, dtype=np.float64)
    for k in range(n):
        out[k] = round_row(k, w[k] + a[:k, k] @ (w[:k] - out[:k]))
    return out
