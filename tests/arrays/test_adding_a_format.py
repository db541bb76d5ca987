"""A new format is one constant, and one function if its levels depend on the numbers; everything else then takes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import io
from qjax.formats import Format, Table
from qjax.solvers import gptq
from qjax.validity import check
from tests.reference import quantize_numpy

THIRDS = Table("thirds", (-1.0, -1 / 3, 1 / 3, 1.0))
CONSTANT = Format(THIRDS, 8, scale="float16")


def between(x, axes, fmt, weights=None):
    """As many levels as the element has, evenly from the least value of a block to its largest."""
    low, high = jnp.min(x, axes, keepdims=True)[..., None], jnp.max(x, axes, keepdims=True)[..., None]
    share = jnp.linspace(0, 1, len(fmt.element.values())).reshape(*(1,) * x.ndim, -1)
    return low + (high - low) * share


FUNCTION = Format(THIRDS, 8, scale=None, levels=between)


def by_hand(w: np.ndarray, fmt: Format) -> np.ndarray:
    if fmt.levels is None:
        return quantize_numpy.quantize(w, fmt)
    groups = w.reshape(-1, 8, w.shape[1])
    levels = groups.min(1)[..., None] + np.ptp(groups, 1)[..., None] * np.linspace(0, 1, 4, dtype=np.float32)
    nearest = np.abs(groups[..., None] - levels[:, None]).argmin(-1)
    return np.take_along_axis(np.moveaxis(levels[:, None], -1, 1)[:, :, 0], nearest, 1).reshape(w.shape)


@pytest.mark.parametrize("fmt", [CONSTANT, FUNCTION], ids=["constant", "function"])
def test_everything_takes_a_format_of_ten_lines(fmt, tmp_path):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(32, 6)).astype(np.float32), rng.normal(size=(64, 32)).astype(np.float32)
    q = qjax.quantize(jnp.asarray(w), fmt)
    check(q)
    back = qjax.dequantize(q)
    np.testing.assert_allclose(back, by_hand(w, fmt), rtol=1e-6, atol=1e-6)
    assert qjax.bits_per_weight(q) == 2 + (16 / 8 if fmt.levels is None else 4 * 32 / 8)
    np.testing.assert_array_equal(qjax.fake_quantize(jnp.asarray(w), fmt), back)
    np.testing.assert_allclose(qjax.matmul(jnp.asarray(x), q), x @ np.asarray(back), rtol=1e-4, atol=1e-4)
    solved, info = gptq.solve(jnp.asarray(w), jnp.asarray(x.T @ x), fmt)
    assert solved.meta == q.meta and float(info.after) < float(info.before)
    io.save(tmp_path / "q", q)
    loaded = io.load(tmp_path / "q")
    assert loaded.meta == q.meta
    jax.tree.map(np.testing.assert_array_equal, loaded, q)
    assert "thirds" in fmt.name and "thirds" in str(loaded.meta.element)


def test_it_may_be_chosen_where_it_is_best():
    either = qjax.formats.choice((CONSTANT, Format(Table("ends", (-1.0, -0.75, 0.75, 1.0)), 8, scale="float16")))
    w = jnp.asarray(np.repeat([[1.0, 1 / 3, -1 / 3, -1.0] * 2, [1.0, 0.75, -0.75, -1.0] * 2], 1, axis=0).T)
    q = qjax.quantize(w.astype(jnp.float32), either)
    np.testing.assert_allclose(qjax.dequantize(q), w, rtol=1e-3)
    assert q.table[..., 0].tolist() == [[0, 1]]
