from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.solvers import column_objectives
from qjax.statistics.second_moments import halvings


@pytest.mark.parametrize("rows", [7, 603])
def test_objectives_of_columns_are_squared_norms_of_outputs(rows):
    """In float64 from the inputs themselves, two matrices at once; 603 rows are halved twice."""
    random = np.random.default_rng(rows)
    x, e = random.normal(size=(2, 40, rows)), random.normal(size=(2, rows, 5))
    assert halvings(rows) == (0 if rows < 512 else 2)
    gram = np.swapaxes(x, 1, 2) @ x
    got = column_objectives(jnp.asarray(gram, jnp.float32), jnp.asarray(e, jnp.float32))
    np.testing.assert_allclose(got, ((x @ e) ** 2).sum(axis=1), rtol=1e-4)
