"""What meets a matrix, in the coordinates a method rounds in."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import qjax
from experiments import outliers


def linear(p, x):
    return x @ p["w"]


def test_input_sizes_are_those_behind_a_rotation():
    """A one in one of 64 channels is an eighth in each of them behind a Hadamard rotation."""
    p, x = {"w": jnp.eye(64)[:, :8]}, jnp.eye(64)[None, :4]
    uses = qjax.uses(linear, p, x)
    assert outliers.input_sizes(linear, p, x, uses, ["w"]) == {"w": [1.0, 0.0]}
    turned, _ = qjax.run(
        qjax.chain(qjax.transforms.rotate_inputs(), qjax.act_quantize("int8")), linear, p, [x], schedule="whole"
    )
    (sizes,) = outliers.input_sizes(linear, turned, x, uses, ["w"]).values()
    assert sizes == pytest.approx([0.125, 0.125], rel=1e-5)
