"""Statistics of batches that lie on eight devices are those of the same batches on one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import qjax
from tests import draw
from tests.transforms import toy

COLLECT = ("gram", "absmax", "min", "mean", "mean_abs")


@pytest.fixture(scope="module")
def alone():
    batches = toy.batches(2)
    weights = [draw.integers(i, 0, 2, toy.TOKENS, dtype=np.float32) for i in range(2)]
    stats = qjax.observe(toy.model, toy.params(), batches, COLLECT, weights=weights)
    return batches, weights, stats, qjax.run(qjax.gptq("int4_g8_f32"), toy.model, toy.params(), batches)[0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_batch_over_devices_changes_nothing(alone, kind):
    batches, weights, stats, q = alone
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    params = jax.device_put(toy.params(), NamedSharding(mesh, P()))
    there, hidden = jax.device_put((batches, weights), NamedSharding(mesh, P("data")))
    got = qjax.observe(toy.model, params, there, COLLECT, weights=hidden)
    assert set(got) == set(stats)
    for path, found in stats.items():
        for name in found:
            for a, b in zip(jax.tree.leaves(got[path][name]), jax.tree.leaves(found[name]), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()), err_msg=f"{path} {name}")
    spread, _ = qjax.run(qjax.gptq("int4_g8_f32"), toy.model, params, there)
    same = [np.mean(np.asarray(a) == np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (spread, q)), strict=True)]
    assert min(same) > 0.98  # statistics agree to rounding; a code may sit on a tie
