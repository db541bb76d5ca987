"""DuQuant's pair of rotations around a permutation, found for each input of a layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from qjax.equivalence.outlier_balance import greedy_rotation, zigzag
from qjax.operators import Composed, Orthogonal, Permute
from qjax.operators.operator import batched
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.samples import SAMPLE, tokens


@functools.partial(jax.jit, static_argnames="block")
def _balanced(x: jax.Array, key: jax.Array, steps: int, *, block: int) -> tuple[jax.Array, ...]:
    """Both rotations and the order between, of tokens [batch..., S, K]; the largest magnitude before and after."""
    keys = jax.random.split(key)

    def found(x: jax.Array) -> tuple[jax.Array, ...]:
        before = greedy_rotation(x, keys[0], size=block, steps=steps)
        turned = Orthogonal(before).apply(x)
        order = zigzag(jnp.max(jnp.abs(turned), axis=0), block)
        dealt = jnp.take(turned, order, axis=-1)
        after = greedy_rotation(dealt, keys[1], size=block, steps=steps)
        peaks = jnp.stack([jnp.max(jnp.abs(v)) for v in (x, Orthogonal(after).apply(dealt))])
        return before, order, after, peaks

    return batched(found, x.ndim - 2)(x)


def balance_outliers(block: int = 128, *, steps: int = 256) -> Transform:
    """Rotate blocks of `block` channels, deal the channels to blocks in zigzag, and rotate again: DuQuant.

    Each rotation, one for all blocks, takes up to `steps` greedy steps on a sample of the input's tokens, half drawn
    from all and half those of the largest magnitude (the authors average the inputs over their calibration windows).
    Online in front of every leaf, `block` + `block` multiplications a channel; leaves that read one input share the
    maps. Behind smoothing, before every method that quantizes. Catalogue H4; see `qjax.equivalence.outlier_balance`.

    Raises:
        ValueError: a block below 2, a negative number of steps; a block that does not divide a leaf's inputs.
    """
    if block < 2 or steps < 0:
        raise ValueError(f"balance_outliers: block {block}, {steps} steps; give a block of at least 2 and steps >= 0")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        first = stage.targets[0]
        cores = {p: float_core(p, stage.params[p], stage.uses[p])[0] for p in stage.targets}
        x, _ = tokens(first, cores[first], stage)
        if x.shape[-1] % block:
            raise ValueError(f"{first}: blocks of {block} do not divide its {x.shape[-1]} inputs; give another block")
        before, order, after, peaks = _balanced(x, key, steps, block=block)
        label = "largest input {:.3g} to {:.3g}".format(*(float(v) for v in peaks.reshape(-1, 2).max(0)))
        m = Composed((Orthogonal(before), Permute(order), Orthogonal(after)))
        rows = {path: {"format": label} for path in stage.targets}
        return Edit(equivalence=dict.fromkeys(stage.targets, m), rows=rows)

    return stateless(f"balance_outliers {block}", "inputs", edit, Needs(statistics=SAMPLE))
