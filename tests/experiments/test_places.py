"""What a float model's activations look like at named places: planted, then found."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from experiments import places
from tests.experiments import toy


def test_planted_gains_and_slow_keys_are_found():
    model, params, _, _ = toy.load()
    layer = params["layers"]["1"]
    layer["attn_norm"]["scale"] = layer["attn_norm"]["scale"].at[7].set(50.0)
    layer["attn"]["k"] = layer["attn"]["k"].at[:, 31].multiply(1000.0)  # the last channel of a head of 32 turns slowest
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16)), jnp.int32)
    wanted = [
        ("max/median", "attention input"),
        ("max/median", "attention input before its gain"),
        ("largest channel", "slow keys"),
        ("largest channel", "fast keys"),
        ("largest/median channel", "values"),
    ]
    found = places.measured(model, params, tokens, wanted)
    gained, before, slow, fast, values = (np.array(found[f"{m} of {p}"]) for m, p in wanted)
    assert all(len(line) == model.arch.layers for line in (gained, values))
    assert gained[1] > 10 * before[1] and before[1] < 20
    assert slow[1] > 100 * fast[1] and slow[0] < 10 * fast[0]
    assert values.max() < 10
