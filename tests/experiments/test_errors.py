"""One yardstick for every row: an online rotation moves no output, and a rotated network has no number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import qjax
from experiments import errors
from qjax.models import Architecture, Decoder
from tests import draw

MODEL = Decoder(Architecture(vocab=40, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48))


def moved(recipe):
    """The error of every target's output, by path."""
    params = draw.parameters(MODEL.arch)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)), jnp.int32)
    uses = qjax.uses(MODEL, params, tokens)
    x = errors.inputs(MODEL, params, tokens, uses.targets())
    program, report = qjax.run(recipe, MODEL, params, [tokens])
    q = program.params if isinstance(program, qjax.Program) else program
    return errors.output_errors(x, uses, params, q, report.rewritten), report


def test_every_matrix_has_a_number_whatever_stands_in_front_of_it():
    found, report = moved(qjax.rotate_inputs(16))
    assert found.keys() == set(report.targets) and not report.rewritten
    assert max(found.values()) < 1e-5
    found, _ = moved(qjax.chain(qjax.rotate_inputs(16), qjax.rtn("int4_g16")))
    assert min(found.values()) > 0.03 and max(found.values()) < 0.3


def test_a_matrix_in_other_coordinates_has_none():
    found, report = moved(qjax.chain(qjax.transforms.rotate(), qjax.rtn("int4_g16")))
    assert not found and set(report.rewritten) == set(report.targets)
    # Values and keys turn within their heads alone: what is left as it was keeps its number.
    found, report = moved(qjax.transforms.rotate(stream=False, down=False))
    assert set(report.rewritten) == {path for path in report.targets if path.endswith(("/v", "/o"))}
    assert found.keys() == set(report.targets) - set(report.rewritten) and max(found.values()) < 1e-5
