"""FrameQuant: GPTQ on coefficients in a tight fusion frame (Adepu et al. 2024, arXiv:2403.06082; catalogue E22).

Both sides of the weight are rotated at random and then written in a redundant tight frame F, F Fᵀ = I,

    W = R_K F_K C F_Nᵀ R_Nᵀ,   C = F_Kᵀ R_Kᵀ W R_N F_N,

and C is rounded by GPTQ under the Gram matrix of the transformed input. Every chunk of c channels goes into k vectors
of the harmonic frame; coefficient j of all chunks spans subspace j of the fusion frame, and the redundancy is k/c. Its
null space absorbs part of the rounding error, at a price of fractional bits.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators import Frame, Map, Post, Pre
from qjax.solvers import gptq
from qjax.solvers.frames import harmonic_frame
from qjax.solvers.incoherence import Deviations, rotation


def framequant(
    w: Array,
    gram: Array,
    fmt: Format | str,
    key: Array,
    *,
    redundancy: float = 1.1,
    chunk: int = 8,
    clip: float = 2.0,
    damp: float = 0.01,
    block: int = 128,
) -> Pre:
    """`w [K, N]` as `Pre(R_K, Pre(F_K, Post(Post(QArray, F_Nᵀ), R_Nᵀ)))`; `gram [K, K]` is XᵀX.

    Chunks have `chunk` channels, or the largest divisor of an axis below it; frames have round(redundancy · chunk)
    vectors on both sides. Coefficients are clipped, and their range set, at `clip` root mean squares of each block
    (the authors' two standard deviations). Rotations and frames cost no bits, the codes more by both redundancies.

    Raises:
        ValueError: a redundancy below 1.
    """
    if redundancy < 1 or chunk < 1:
        raise ValueError(f"framequant: redundancy={redundancy}, chunk={chunk}; give at least 1")
    f = as_format(fmt)
    return _framequant(
        w, gram, key, jnp.float32(damp), fmt=f, redundancy=redundancy, chunk=chunk, clip=clip, block=block
    )


@partial(jax.jit, static_argnames=("fmt", "redundancy", "chunk", "clip", "block"))
def _framequant(
    w: Array,
    gram: Array,
    key: Array,
    damp: Array,
    *,
    fmt: Format,
    redundancy: float,
    chunk: int,
    clip: float,
    block: int,
) -> Pre:
    inside, outside = jax.random.split(key)
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    inputs, outputs = w.shape
    turn_in, turn_out = rotation(inside, inputs, "kronecker"), rotation(outside, outputs, "kronecker")
    frame_in, frame_out = parseval(inputs, redundancy, chunk), parseval(outputs, redundancy, chunk)
    # F Fᵀ = I, so Fᵀ is a right inverse: C = F_Kᵀ R_Kᵀ W R_N F_N.
    c = frame_out.apply(turn_out.apply(frame_in.apply(turn_in.apply(w.T)).T))
    h = gram
    for m in (turn_in, frame_in):
        h = m.apply(m.apply(h).T)
    reach = clip * jnp.sqrt(jnp.mean(c * c, axis=0, keepdims=True))
    c = jnp.clip(c, -reach, reach)
    q = gptq.sweep(c, gptq.factor(h, damp), fmt, block=block, range=Deviations(clip))[0]
    return Pre(turn_in, Pre(frame_in, Post(Post(q, frame_out.transpose()), turn_out.inverse())))


def parseval(size: int, redundancy: float, chunk: int) -> Map:
    """The map of `size` channels into a harmonic tight frame of each chunk, with F Fᵀ = I."""
    chunk = math.gcd(size, chunk)
    count = round(redundancy * chunk)
    return Frame(jnp.asarray(harmonic_frame(chunk, count).T * math.sqrt(chunk / count)))
