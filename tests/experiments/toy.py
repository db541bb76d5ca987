"""A two-layer decoder on bytes, for runs that take seconds."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from qjax.models import Architecture, Decoder
from qjax.trace.paths import leaves_with_paths
from tests import draw


class Bytes:
    """One token a byte."""

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids, special=True):
        return bytes(int(i) for i in ids).decode(errors="replace")


def load():
    """Model, params, tokenizer, and cells for every matrix of the layers."""
    model = Decoder(Architecture(vocab=256, width=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn=128))
    params = draw.parameters(model.arch)
    matrices = {p: w for p, w in leaves_with_paths(params).items() if p.startswith("layers") and w.ndim == 2}
    cells = {path: jnp.full((w.shape[0] // 32, w.shape[1]), 0.02) for path, w in matrices.items()}
    return model, params, Bytes(), cells
