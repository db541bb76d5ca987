"""The wiring record, judged by what it promises: rewrites it calls exact leave the logits alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from qjax.equivalence import rotate_stream
from qjax.models import Architecture, Decoder, Experts, stack_layers
from qjax.models.decoder import nest
from qjax.operators import Hadamard
from qjax.trace.paths import leaves_with_paths, replace_leaves

TIED = Architecture(vocab=32, width=12, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=20)
ARCHS = {
    "tied": TIED,
    "untied, biases": dataclasses.replace(TIED, tied=False, qkv_bias=True, o_bias=True, ffn_bias=True),
    "experts": dataclasses.replace(TIED, experts=Experts(4, 2, 6, shared=10, normalized=False)),
}
# What other families change, two models of it.
VARIANTS = {
    "norms behind, of heads, and windows": dataclasses.replace(
        TIED, tied=False, placement="both", qk_norm="head", windows=(3, 0), window_theta=100.0, activation="gelu_tanh"
    ),
    "parallel, means, learned positions": dataclasses.replace(
        ARCHS["untied, biases"],
        norm="layer",
        parallel=True,
        gated=False,
        activation="relu",
        rotary=0,
        learned_positions=True,
        context=6,
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (1, 5)).astype(np.int32)


def leaves_of(arch, scan):
    random = np.random.default_rng(1)
    params = nest({path: random.normal(0, 0.4, shape).astype(np.float32) for path, shape in arch.shapes.items()})
    return {
        path: np.asarray(leaf) for path, leaf in leaves_with_paths(stack_layers(params) if scan else params).items()
    }


def scaled(leaves, port, factor):
    """The channels of a port (and its bias) times a vector."""
    w = leaves[port.path]
    shape = [1] * w.ndim
    shape[port.axis] = len(factor)
    leaves[port.path] = w * factor.reshape(shape)
    if port.bias is not None:
        leaves[port.bias] = leaves[port.bias] * factor


def logits(arch, scan, leaves):
    model = Decoder(arch, scan=scan)
    empty = jax.eval_shape(model.init, jax.random.key(0))
    return np.asarray(model(replace_leaves(empty, leaves), TOKENS))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("arch", (ARCHS | VARIANTS).values(), ids=ARCHS | VARIANTS)
def test_every_scale_the_record_allows_leaves_the_logits_alone(arch, scan):
    leaves, wiring, random = leaves_of(arch, scan), Decoder(arch, scan=scan).topology, np.random.default_rng(2)
    wiring.check({path: leaf.shape for path, leaf in leaves.items()})
    expected = logits(arch, scan, leaves)

    def draw(n):
        return random.uniform(0.5, 2.0, n).astype(np.float32)

    for norm in wiring.norms:
        if norm.consumers[0].path == "embed":  # a tied embedding needs both uses apart
            continue
        factor = draw(leaves[norm.gain].shape[-1])
        for name in (norm.gain, norm.bias):
            if name is not None:
                leaves[name] = leaves[name] * factor
        for port in norm.consumers:
            scaled(leaves, port, 1 / factor)
    for pair in wiring.values:
        factor = draw(pair.kv_heads * pair.head_dim).reshape(pair.kv_heads, 1, pair.head_dim)
        scaled(leaves, pair.v, factor.ravel())
        scaled(leaves, pair.o, 1 / np.repeat(factor, pair.heads // pair.kv_heads, axis=1).ravel())
    for pair in wiring.scores:
        # One factor for both channels of a pair that turns together, or none does.
        assert pair.rope == ("halves" if arch.rotated else None)
        factor = np.tile(draw(pair.kv_heads * pair.head_dim // 2).reshape(pair.kv_heads, 1, -1), (1, 1, 2))
        scaled(leaves, pair.k, factor.ravel())
        scaled(leaves, pair.q, 1 / np.repeat(factor, pair.heads // pair.kv_heads, axis=1).ravel())
    for product in wiring.products:
        assert product.passes_scales
        factor = draw(leaves[product.down.path].shape[-2])
        scaled(leaves, product.up, factor)
        scaled(leaves, product.down, 1 / factor)
    np.testing.assert_allclose(logits(arch, scan, leaves), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
def test_the_stream_rotates_when_all_its_readers_and_writers_do(arch, scan):
    leaves, wiring = leaves_of(arch, scan), Decoder(arch, scan=scan).topology
    for norm in wiring.norms:  # gains of one: what is left of the norm commutes with a rotation
        leaves[norm.gain] = np.ones_like(leaves[norm.gain])
    expected = logits(arch, scan, leaves)
    r = np.linalg.qr(np.random.default_rng(3).normal(size=(arch.width, arch.width)))[0].astype(np.float32)
    turned = set()
    for port in (*wiring.readers, *wiring.writers):
        if port.path in turned:  # a tied embedding is both
            continue
        turned.add(port.path)
        w = np.moveaxis(leaves[port.path], port.axis, -1)
        leaves[port.path] = np.moveaxis(w @ r, -1, port.axis)
        if port.bias is not None:
            leaves[port.bias] = leaves[port.bias] @ r
    np.testing.assert_allclose(logits(arch, scan, leaves), expected, rtol=2e-4, atol=2e-4)


def test_what_an_architecture_forbids_is_not_in_the_record():
    def wiring(**changes):
        return Decoder(dataclasses.replace(TIED, **changes)).topology

    for placement in ("post", "both"):
        record = wiring(placement=placement)
        assert record.readers == record.writers == ()
        with pytest.raises(ValueError, match="no writers"):
            rotate_stream({}, record, Hadamard(None, 12))
    assert [norm.gain for norm in wiring(placement="post").norms] == ["norm/scale"]
    assert not wiring(norm="layer").rms
    assert wiring(qk_norm="head").scores == wiring(qk_norm="width").scores == wiring(rotary=2).scores == ()
    assert not wiring(gated=False, activation="gelu").products[0].passes_scales


def test_every_matrix_is_wired():
    for arch in ARCHS.values():
        wired = {port.path for port in Decoder(arch).topology.ports()}
        assert wired == {path for path, shape in arch.shapes.items() if len(shape) >= 2}
