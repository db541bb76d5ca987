"""Whether a quantized array is well formed: structure, shapes, scales and codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from qjax import blocks
from qjax.formats.one_of import OneOf
from qjax.formats.table import Table
from qjax.qarray import QArray


def check(q: QArray, name: str = "array") -> None:
    """Raises ValueError naming `name` and the part that is wrong; concrete arrays only (TypeError under a trace).

    Structure, shapes and batch ranks; scales finite, none zero above codes that stand for something (negative ones
    occur with rules "signed" and "ggml"); offsets finite, zero points among the codes; tables finite and ascending;
    codes in range and none that stands for NaN or infinity.

    >>> from qjax.quantization import quantize
    >>> check(quantize(jnp.ones((64, 2)), "nvfp4"))
    """
    _check(q, name, inner=False)


def _check(q: QArray, name: str, inner: bool) -> None:
    """`inner`: these are scales or offsets; zeros above all of them at once make empty blocks, as ggml writes them."""
    if not isinstance(q, QArray):
        raise TypeError(f"{name}: expected a QArray, got {type(q).__name__}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(q)):
        raise TypeError(f"{name}: check needs concrete arrays; call it outside jit")
    _check_structure(q, name)
    for i, scale in enumerate(q.scales):
        _check_child(q, scale, f"{name}.scales[{i}]", scale=not inner)
    if q.offset is not None:
        _check_child(q, q.offset, f"{name}.offset", scale=False)
    _check_codes(q, name)  # last: a NaN among the weights is better told by its scale than by its codes


def _check_structure(q: QArray, name: str) -> None:
    meta = q.meta
    if not q.scales and q.table is None and any(b != -1 for b in meta.block):
        raise ValueError(f"{name}: blocks {meta.block} have neither scale nor table; a direct cast has whole axes")
    if (q.offset is None) != (meta.offset is None):
        raise ValueError(
            f"{name}: meta says offset {meta.offset!r}, the array has {'none' if q.offset is None else 'one'}"
        )
    if q.codes.ndim < len(meta.block):
        raise ValueError(f"{name}: codes {q.codes.shape} have fewer axes than block {meta.block}")
    core = q.codes.shape[q.codes.ndim - len(meta.block) :]
    for axis, (n, b, p) in enumerate(zip(core, meta.block, meta.padding, strict=True)):
        if b > 0 and n % b:
            raise ValueError(f"{name}: core axis {axis} has {n} codes, no whole number of blocks of {b}")
        if p < 0 or p >= max(b, 1) + (b == -1):
            raise ValueError(f"{name}: padding {p} on core axis {axis} is not less than a block of {b}")
    if q.table is not None:
        e, allowed = meta.element, (*q.batch_shape, *blocks.grid_shape(core, meta.block))
        levels = 1 if isinstance(e, OneOf) else len(e.values())
        if not isinstance(e, Table | OneOf) or q.table.shape[-1:] != (levels,):
            raise ValueError(f"{name}: table {q.table.shape} does not fit element {e.name}")
        shape = q.table.shape[:-1]
        if len(shape) != len(allowed) or any(n not in (m, 1) for n, m in zip(shape, allowed, strict=True)):
            raise ValueError(f"{name}: table {q.table.shape} does not fit the blocks {allowed} of {levels} levels")
        values = np.asarray(q.table).astype(np.float32)
        if isinstance(e, OneOf) and np.any(values >= len(e.elements)):
            raise ValueError(f"{name}: the table chooses among {len(e.elements)} elements, got {int(np.max(values))}")
        if not np.all(np.isfinite(values)) or not np.all(np.diff(values, axis=-1) >= 0):
            raise ValueError(f"{name}: the table must be finite and ascending")


def _check_child(q: QArray, child: Array | QArray, name: str, scale: bool) -> None:
    core = q.codes.shape[q.codes.ndim - len(q.meta.block) :]
    grid = blocks.grid_shape(core, q.meta.block)
    if len(child.shape) != q.codes.ndim:
        raise ValueError(
            f"{name}: rank {len(child.shape)} differs from the codes' {q.codes.ndim}: {tuple(child.shape)}"
        )
    allowed = (*q.batch_shape, *grid)
    # Shared batch axes have size 1, and a second scale may serve several blocks.
    if any(n not in (m, 1) for n, m in zip(child.shape, allowed, strict=True)):
        raise ValueError(f"{name}: shape {tuple(child.shape)} does not fit the blocks {allowed}")
    if isinstance(child, QArray):
        _check(child, name, inner=True)
        return
    value = np.asarray(child).astype(np.float32)
    if not np.all(np.isfinite(value)):
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ValueError(f"{name}: {value[at]} at {at}; the weights of that block are not finite")
    if scale and np.any(value == 0):
        size = np.abs(np.asarray(q.meta.element.decode(q.codes)))
        something = size > np.min(np.abs(q.meta.element.levels()))
        lost = np.asarray(blocks.enlarge(jnp.asarray(value == 0), core, q.meta.block)) & something
        if np.any(lost):
            at = tuple(int(i) for i in np.argwhere(lost)[0])
            raise ValueError(f"{name}: zero scale of the code at {at}")
    if not scale and q.meta.offset == "zero_point":
        e = q.meta.element
        if np.any(value != np.round(value)) or np.any(value < e.min) or np.any(value > e.max):
            raise ValueError(f"{name}: zero points must be codes {e.min:g}..{e.max:g}")


def _check_codes(q: QArray, name: str) -> None:
    e = q.meta.element
    if not jnp.issubdtype(q.codes.dtype, jnp.integer):
        raise ValueError(f"{name}.codes: expected integers, got {q.codes.dtype}")
    codes, values = np.asarray(q.codes).astype(np.int64), e.values()
    valid = np.isfinite(values)
    if np.dtype(e.code_dtype).kind == "i":
        valid &= values >= e.min
        low, high = -(2 ** (e.bits - 1)), 2 ** (e.bits - 1) - 1
    else:
        low, high = 0, len(values) - 1
    wrong = (codes < low) | (codes > high)
    wrong |= ~valid[np.where(wrong, 0, codes) % len(values)]
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}.codes: {codes[at]} at {at} is no finite {e.name} ({int(wrong.sum())} such codes)")
