"""ARCQuant: outlier channels rounded twice, their second part as channels of the same format behind the others."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.formats import FULL, Format, as_format
from qjax.operators import Permute, Quantize, ResidualChannels
from qjax.operators.operator import batched
from qjax.qarray import QArray
from qjax.solvers import rtn
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.matrices import behind_maps, relative_errors, report_row


def residual_channels(fmt: Format | str = "nvfp4", *, share: float = 0.125, channels: int | None = None) -> Transform:
    """Round weights and inputs to one format, the input channels with outliers twice.

    Channels are put in the order of their largest magnitude in calibration. Those that exceed `share` of the largest of
    all, filled up to whole blocks of the format, are repeated behind the others: their rounding errors are rounded once
    more, against the same rows of the weight (ARCQuant, arXiv:2601.07475, section 3; catalogue G19). The default is
    the authors' threshold, 2^-3 of the layer's maximum: three bits are what E4M3 has beyond E2M1. `channels` says how
    many instead, the same for every leaf (their S).

    Raises:
        ValueError: a share outside (0, 1]; a negative number of channels, more than a leaf has or no whole blocks; a
            format whose blocks do not divide a leaf's inputs.
    """
    f = as_format(fmt)
    if not 0 < share <= 1:
        raise ValueError(f"residual_channels: a share of {share} of the largest magnitude; give one in (0, 1]")
    if channels is not None and (channels < 0 or (f.block != FULL and channels % f.block)):
        raise ValueError(f"residual_channels: {channels} channels are no whole blocks of {f.name}")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        del key
        first = stage.targets[0]
        core, _ = float_core(first, stage.params[first], stage.uses[first])
        size = behind_maps(first, core, stage, ("absmax",))["absmax"]
        k = size.shape[-1]
        block = 1 if f.block == FULL else f.block
        if k % block:
            raise ValueError(f"{first}: blocks of {block} do not divide its {k} inputs; give another format")
        if channels is not None and channels > k:
            raise ValueError(f"{first}: {channels} channels twice, but it reads {k}")
        found = int(jnp.max(jnp.sum(size > share * jnp.max(size, axis=-1, keepdims=True), axis=-1)))
        count = min(math.ceil(found / block) * block, k) if channels is None else channels
        order = jnp.argsort(size, axis=-1, stable=True).astype(jnp.int32)
        rounding = ResidualChannels(f, count) if count else Quantize.dynamic(f)
        params, rows = {}, {}
        for path in stage.targets:
            core, w = float_core(path, stage.params[path], stage.uses[path])
            own = jnp.broadcast_to(order, w.shape[:-1])
            q, near, back = _augmented(w, own, fmt=f, count=count)
            before, after = relative_errors(w, near, back, None)
            params[path] = core.behind(Permute(own)).behind(rounding).holding(q).leaf()
            rows[path] = report_row(f"{f.name}, {count} channels twice", q, before, after)
        return Edit(params=params, rows=rows)

    how = f"{share:g}" if channels is None else f"{channels} channels"
    return stateless(f"residual_channels {f.name} {how}", "inputs", edit, Needs(statistics=("absmax",)))


@functools.partial(jax.jit, static_argnames=("fmt", "count"))
def _augmented(w: jax.Array, order: jax.Array, *, fmt: Format, count: int) -> tuple[QArray, jax.Array, jax.Array]:
    """The matrix [batch..., K + count, N] in the order, with its last rows again; dense, rounded in place and out."""

    def one(w: jax.Array, order: jax.Array) -> tuple[QArray, jax.Array, jax.Array]:
        rows = w[order]
        # The blocks of the repeated rows are blocks of the matrix: they get the same scales and codes.
        q = rtn(jnp.concatenate([rows, rows[rows.shape[0] - count :]]), fmt)
        back = jnp.zeros_like(w).at[order].set(dispatch.dense(q)[: w.shape[0]].astype(w.dtype))
        return q, dispatch.dense(rtn(w, fmt)), back

    return batched(one, w.ndim - 2)(w, order)
