"""Weights that try ggml's encoders, and the digests of what libggml 0.13.1 makes of them.

`tests/oracle/test_ggml_oracle.py` computes the digests again with the library; where it is not installed they stand
for it.
"""

from __future__ import annotations

import hashlib

import numpy as np

ROWS, COLUMNS = 24, 512


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Uniform in [0, 1) by integer arithmetic, so that no library's generator can change them."""
    x = np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float64).reshape(shape) / 2.0**24


def weights() -> np.ndarray:
    """[rows, columns] float32: bell-shaped rows of many sizes, then the awkward ones."""
    w = sum(drawn(seed, ROWS, COLUMNS) for seed in range(4)) - 2.0
    w *= 2.0 ** (np.arange(ROWS) % 12 - 8)[:, None]
    w[0] = 0
    w[1, :256] = 0
    w[2, ::5] = 0
    w[3], w[4] = np.abs(w[3]), -np.abs(w[4])
    w[5] = 0.25
    w[6] = np.round(w[6] * 16) / 4  # halfway between codes, and equal sizes of both signs
    w[7] = 0
    w[7, 40] = -1
    w[8, 128:] *= 1e-3
    w[9] *= 1e-4  # scales are subnormal halves
    w[10] *= 1e-25  # and vanish
    w[11] *= 2e3
    w[12, ::2] = -0.0
    return w.astype(np.float32)


def importance() -> np.ndarray:
    """[columns] positive float32, as of a few large channels among many small ones."""
    return (drawn(9, COLUMNS) ** 4 * 10 + 1e-3).astype(np.float32)


def digest(data: np.ndarray) -> str:
    """Of the bytes of all rows."""
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:16]


DIGESTS: dict[tuple[str, bool], str] = {
    ("q4_0", False): "5bd2e6f909770b2f",
    ("q4_0", True): "f74bd20b0e542157",
    ("q4_1", False): "b6a2469053b013c3",
    ("q4_1", True): "d2f3a05a097e5a32",
    ("q5_0", False): "f4130178dc2cd6c4",
    ("q5_0", True): "45e62b3ab420928b",
    ("q5_1", False): "28f7ace4a21d868d",
    ("q5_1", True): "542945485249a8e7",
    ("q8_0", False): "ae4a3e8a85f9af1a",
    ("q2_k", False): "c0afe97a736a5550",
    ("q2_k", True): "3e24a34271c524b1",
    ("q3_k", False): "199e78db339e62eb",
    ("q3_k", True): "ebfe091d6347e67f",
    ("q4_k", False): "6e5edf15a7e2c8ca",
    ("q4_k", True): "dfff050a8a3353ae",
    ("q5_k", False): "bcd85ebf626cf8df",
    ("q5_k", True): "c84f840dfd0fd035",
    ("q6_k", False): "a447da4ee686dd2f",
    ("q6_k", True): "92609ed09deb12f6",
    ("iq4_nl", False): "e07be0cfa807cad9",
    ("iq4_nl", True): "e53d59f42eec6eb5",
    ("tq1_0", False): "dc900ecfe9afd9dd",
    ("tq2_0", False): "ac83774a08e63c08",
    ("mxfp4", False): "fc58eca50a924dcf",
    ("nvfp4", False): "4a574086fe23d783",
}
"""By type and whether it was given `importance`."""
