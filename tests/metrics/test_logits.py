"""What a model finds most likely, next to numpy's own choice."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from qjax.metrics import most_likely


def test_the_most_likely_is_argmax_with_ties_infinities_and_nans():
    ends = [-jnp.inf, -1.0, 0.0, jnp.inf, jnp.nan]
    logits = jnp.asarray(np.random.default_rng(0).choice(ends, (64, 2, 7)), jnp.float32)
    found = most_likely(logits)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, logits.argmax(-1))
