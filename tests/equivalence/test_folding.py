"""Folds against their online form, for every producer, and what has to stay."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.models import Architecture, Decoder, stack_layers
from qjax.operators import Diag, Pre
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests import draw

ARCH = Architecture(vocab=40, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=40, qkv_bias=True, ffn_bias=True)


def apart(model, p, q, tokens) -> float:
    a, b = model(p, tokens), qjax.quantized(model, strict=True)(q, tokens)
    return float(jnp.max(jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(a, axis=-1)))


@pytest.fixture(params=[False, True], ids=["unrolled", "scan"])
def subject(request):
    model = Decoder(ARCH, scan=request.param)
    p = draw.parameters(ARCH)
    p = stack_layers(p) if model.scan else p
    bias = {path: 0.3 * jnp.ones_like(v) for path, v in leaves_with_paths(p).items() if path.endswith("_bias")}
    tokens = draw.integers(1, 0, ARCH.vocab, 2, 9)
    return model, replace_leaves(p, bias), tokens


def scaled(p, name, make):
    """Every leaf called `name` behind an online scale."""
    new = {}
    for path, leaf in leaves_with_paths(p).items():
        if path.endswith(f"/{name}"):
            d = make(leaf)
            new[path] = Pre(Diag(d), leaf / d[..., None])
    return replace_leaves(p, new)


def positive(shape, key=3):
    return jnp.exp(draw.normal(key, *shape))


def test_smoothing_folds_into_norms_and_up_and_names_what_stays(subject):
    model, p, tokens = subject
    by = "layers" if model.scan else "layers/*"
    online, _ = qjax.run(qjax.smooth(0.5), model, p, [tokens], by=by)
    assert apart(model, p, online, tokens) <= 5e-5
    folded, stayed = qjax.fold(online, model.topology)
    assert apart(model, p, folded, tokens) <= 5e-5
    assert {s.path.split("/")[-1] for s in stayed} == {"o"}  # grouped queries scale each head on its own
    assert all("query heads that share a value head" in s.why and s.cost == 24 for s in stayed)
    kept = [path for path, leaf in leaves_with_paths(folded).items() if isinstance(leaf, Pre)]
    assert kept == [s.path for s in stayed]


@pytest.mark.parametrize("name", ["q", "gate", "down"])
def test_each_fold_equals_its_online_form(subject, name):
    model, p, tokens = subject
    online = scaled(p, name, lambda w: positive(w.shape[:-1]))
    folded, stayed = qjax.fold(online, model.topology)
    assert apart(model, p, online, tokens) <= 5e-5
    assert apart(model, p, folded, tokens) <= 5e-5
    if name == "down":
        assert not stayed
    else:  # its neighbours do not carry the scale
        assert all("do not all carry the same scale" in s.why for s in stayed)
        assert stayed


def test_scales_shared_by_grouped_heads_fold_into_values(subject):
    model, p, tokens = subject

    def shared(w):
        per_kv = positive((*w.shape[:-2], 2, 1, 6))
        return jnp.broadcast_to(per_kv, (*w.shape[:-2], 2, 2, 6)).reshape(w.shape[:-1])

    folded, stayed = qjax.fold(scaled(p, "o", shared), model.topology)
    assert not stayed
    assert apart(model, p, folded, tokens) <= 5e-5


def test_a_quantized_producer_keeps_the_scale_online(subject):
    model, p, tokens = subject
    online = scaled(p, "down", lambda w: positive(w.shape[:-1]))
    quantized, _ = qjax.run(qjax.rtn("int8"), model, online, [tokens], where=lambda path: path.endswith("/up"))
    folded, stayed = qjax.fold(quantized, model.topology)
    assert all("quantized already" in s.why for s in stayed)
    assert len(stayed) == (1 if model.scan else 2)
    np.testing.assert_array_equal(qjax.quantized(model)(quantized, tokens), qjax.quantized(model)(folded, tokens))


def test_a_topology_of_another_network_is_refused(subject):
    model, p, _ = subject
    other = Decoder(dataclasses.replace(ARCH, layers=3), scan=model.scan)
    if not model.scan:
        with pytest.raises(ValueError, match="layers/2"):
            qjax.fold(p, other.topology)
