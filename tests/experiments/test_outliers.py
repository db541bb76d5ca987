"""What meets a matrix, in the coordinates a method rounds in."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import qjax
from experiments import outliers


def linear(p, x):
    return x @ p["w"]


def test_what_meets_a_matrix_is_what_lies_behind_a_rotation():
    """A one in one of 64 channels is an eighth in each of them behind a Hadamard rotation: as even as can be."""
    p, x = {"w": jnp.eye(64)[:, :8]}, jnp.eye(64)[None, :4]
    uses = qjax.uses(linear, p, x)
    plain = outliers.meeting(linear, p, x, uses, ["w"])["w"]
    assert plain == pytest.approx(
        {"largest": 1.0, "median": 0.0, "crest": 8.0, "kurtosis": 64.0, "flatness": 1.225, "zeros": 63 / 64}, abs=0.001
    )
    turned, _ = qjax.run(
        qjax.chain(qjax.transforms.rotate_inputs(), qjax.act_quantize("int8")), linear, p, [x], schedule="whole"
    )
    (behind,) = outliers.meeting(linear, turned, x, uses, ["w"]).values()
    assert behind == pytest.approx(
        {"largest": 0.125, "median": 0.125, "crest": 1.0, "kurtosis": 1.0, "flatness": 0.0, "zeros": 0.0}, abs=1e-4
    )
