"""A small model whose quantized matrices hold any codes, for the tests of checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tokenizers

import qjax
from qjax.models import Architecture, Decoder, Tokenizer
from qjax.models.decoder import nest

ARCH = Architecture(vocab=8, width=64, layers=2, heads=4, kv_heads=4, head_dim=16, ffn=96, tied=False)
MODEL = Decoder(ARCH)
WORDS = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")), bos=0)


def draw(fmt, shape=(64, 64), seed=0):
    """A quantized matrix of any finite codes, scales and zeros: nothing is compiled, and every code occurs."""
    fmt, random = qjax.as_format(fmt), np.random.default_rng(seed)
    block = (fmt.block, fmt.across)
    grid = tuple(1 if b == qjax.FULL else n // b for n, b in zip(shape, block, strict=True))
    values = fmt.element.values()
    valid = np.flatnonzero(np.isfinite(values) & (values >= fmt.element.min))
    codes = random.choice(valid, shape)
    if np.dtype(fmt.element.code_dtype).kind == "i":
        codes = values[codes]
    scale = 2.0 ** random.integers(-6, 3, grid)
    if isinstance(fmt.scale, qjax.Format):
        inner = qjax.QArray(
            jnp.asarray(random.integers(1, 127, grid), jnp.uint8),
            (jnp.full((1, 1), 0.00123, jnp.float32),),
            *(None, None, qjax.Meta(fmt.scale.element, (qjax.FULL, qjax.FULL))),
        )
    else:
        wide = np.dtype(getattr(ml_dtypes, fmt.scale, fmt.scale)).itemsize > 1
        inner = jnp.asarray(scale * random.uniform(1, 2, grid) if wide else scale).astype(fmt.scale)
    zero = None
    if fmt.offset == "zero_point":
        zero = jnp.asarray(random.integers(1, int(fmt.element.max) + 1, grid), fmt.element.code_dtype)
    codes = jnp.asarray(codes, fmt.element.code_dtype)
    return qjax.QArray(codes, (inner,), zero, None, qjax.Meta(fmt.element, block, fmt.offset))


def parameters():
    """Float parameters of the model."""
    random = np.random.default_rng(0)
    return nest({path: jnp.asarray(random.normal(size=shape), jnp.float32) for path, shape in ARCH.shapes.items()})


def same(a, b):
    """Two trees with the same leaves, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))
