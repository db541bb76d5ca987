"""Cross-layer equalization against its definition: equal ranges, the same function, the largest sum of precisions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import qjax
from qjax import equivalence, recipes
from qjax.models import Architecture, Decoder, stack_layers
from qjax.operators import Post
from qjax.trace.paths import leaves_with_paths, replace_leaves
from qjax.trace.topology import Port, Product, Topology
from tests import draw

CHAIN = Topology(
    products=tuple(
        Product(None, Port(a, -1, bias=f"{a}_bias"), Port(b, -2), homogeneous=True)
        for a, b in (("w0", "w1"), ("w1", "w2"))
    )
)


def relu_net(p, x):
    for name in ("w0", "w1"):
        x = jax.nn.relu(x @ p[name] + p[f"{name}_bias"][None])
    return x @ p["w2"]


def params():
    rng = np.random.default_rng(0)
    p = {f"w{i}": rng.normal(size=(8, 8)) for i in range(3)} | {f"w{i}_bias": rng.normal(size=8) for i in range(2)}
    for i in range(2):  # channels of very different ranges, as behind a folded batch norm
        s = np.exp(rng.normal(0, 1.5, 8))
        p[f"w{i}"], p[f"w{i}_bias"], p[f"w{i + 1}"] = p[f"w{i}"] * s, p[f"w{i}_bias"] * s, p[f"w{i + 1}"] / s[:, None]
    return {name: jnp.asarray(v, jnp.float32) for name, v in p.items()}


P, X = params(), jnp.asarray(np.random.default_rng(1).normal(size=(64, 8)), jnp.float32)


def test_scales_make_the_sum_of_precisions_largest():
    """The paper's objective, sum p_i q_i, against a thousand other scales of two random layers."""
    rng = np.random.default_rng(2)
    r1, r2 = rng.exponential(size=(2, 8)).astype(np.float32)

    def objective(s):
        return np.sum((r1 / s / np.max(r1 / s)) * (r2 * s / np.max(r2 * s)))

    s = np.asarray(equivalence.equalizing_scale(jnp.asarray(r1), jnp.asarray(r2)))
    others = [objective(s * np.exp(rng.normal(0, spread, 8))) for spread in (0.01, 0.1, 1.0) for _ in range(333)]
    assert objective(s) >= max(others) and objective(s) > objective(np.ones(8))
    np.testing.assert_allclose(r1 / s, r2 * s, rtol=1e-6)


def test_a_chain_of_relus_is_equalized_and_stays_its_function():
    q, report = qjax.run(qjax.transforms.equalize(), relu_net, P, [X], schedule="whole", topology=CHAIN)
    np.testing.assert_allclose(relu_net(q, X), relu_net(P, X), rtol=1e-4, atol=1e-4)
    assert {row["path"] for row in report.rows} == {"w0", "w1", "w2"}
    for a, b in (("w0", "w1"), ("w1", "w2")):
        np.testing.assert_allclose(jnp.max(jnp.abs(q[a]), 0), jnp.max(jnp.abs(q[b]), 1), rtol=5e-3)
        before = jnp.max(jnp.abs(P[a]), 0) / jnp.max(jnp.abs(P[b]), 1)
        assert float(jnp.max(before) / jnp.min(before)) > 10  # it was far from equal
    online = {**P, "w1": qjax.Pre(qjax.operators.Diag(jnp.full(8, 0.5)), P["w1"])}
    folded, left = qjax.fold(online, CHAIN)
    assert not left
    np.testing.assert_array_equal(folded["w0_bias"], P["w0_bias"] / 2)
    negative = {**P, "w1": qjax.Pre(qjax.operators.Diag(jnp.full(8, -0.5)), P["w1"])}
    _, (stayed,) = qjax.fold(negative, CHAIN)
    assert "positive scales pass only" in stayed.why


def test_data_free_quantization_repairs_one_scale_for_a_tensor():
    """The recipe on the chain: a hundredth of the error of 6 bits per tensor is left, and of that of the mean."""
    plain, _ = qjax.run(qjax.rtn("int6_tensor"), relu_net, P, [X], schedule="whole")
    repaired, _ = qjax.run(recipes.data_free("int6_tensor"), relu_net, P, [X], schedule="whole", topology=CHAIN)
    true = relu_net(P, X)
    errors = [np.asarray(jax.jit(qjax.quantized(relu_net))(q, X) - true) for q in (plain, repaired)]
    assert np.sum(errors[1] ** 2) < 1e-2 * np.sum(errors[0] ** 2)
    assert isinstance(repaired["w2"], Post)
    assert np.abs(errors[1].mean(0)).max() < 1e-2 * np.abs(errors[0].mean(0)).max()


def test_heads_that_share_a_value_channel_share_its_scale():
    """In a stack of layers that is scanned."""
    model = Decoder(
        Architecture(
            vocab=40, width=24, layers=2, head_dim=8, ffn=40, heads=4, kv_heads=2, qkv_bias=True, ffn_bias=True
        ),
        scan=True,
    )
    rng = np.random.default_rng(3)
    p = stack_layers(draw.parameters(model.arch))
    odd = {k: v * np.exp(rng.normal(0, 1, v.shape)).astype(v.dtype) for k, v in leaves_with_paths(p).items()}
    p = replace_leaves(p, odd)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 9)), jnp.int32)
    q, _ = qjax.run(qjax.transforms.equalize(), model, p, [tokens], by="layers")
    a, b = (np.asarray(jax.jit(model)(leaves, tokens)) for leaves in (p, q))
    assert np.max(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(a, axis=-1)) <= 5e-5
    size = {path: np.abs(np.asarray(leaf)) for path, leaf in leaves_with_paths(q).items()}
    for path, leaf in size.items():
        if path.endswith("attn/v"):
            o = size[path[:-1] + "o"]
            heads = o.max(-1).reshape(*o.shape[:-2], 2, 2, 8)
            mine = leaf.max(-2).reshape(*leaf.shape[:-2], 2, 8)
            np.testing.assert_allclose(mine, heads.max(-2), rtol=2e-3)
        if path.endswith("ffn/up"):
            down = size[path.removesuffix("up") + "down"]
            np.testing.assert_allclose(leaf.max(-2), down.max(-1), rtol=2e-3)


def test_refusals():
    with pytest.raises(ValueError, match="not known of this function"):
        qjax.run(qjax.transforms.equalize(), relu_net, P, [X], schedule="whole")
    with pytest.raises(ValueError, match="0 rounds"):
        qjax.transforms.equalize(rounds=0)
    recipe = qjax.chain(qjax.rtn("int8"), qjax.transforms.equalize())
    with pytest.raises(ValueError, match="equalize before any other method"):
        qjax.run(recipe, relu_net, P, [X], schedule="whole", topology=CHAIN)


def test_expected_inputs_and_absorbed_biases():
    """E[clip(x)] by quadrature; a ReLU passes c unchanged for all but the 0.135 % three deviations below the mean."""
    rng = np.random.default_rng(4)
    mean, std = rng.normal(size=5).astype(np.float32), rng.exponential(size=5).astype(np.float32)
    for low, high in ((0.0, np.inf), (0.0, 6.0), (-1.0, 1.0)):
        got = equivalence.clipped_normal_mean(jnp.asarray(mean), jnp.asarray(std), low, high)
        for g, m, s in zip(got, mean, std, strict=True):
            density = stats.norm(float(m), float(s))
            cuts = [max(low, m - 12 * s), min(high, m + 12 * s)]
            want = integrate.quad(lambda x, d=density: x * d.pdf(x), *cuts)[0] if cuts[0] < cuts[1] else 0.0
            want += low * density.cdf(low) + (0 if high == np.inf else high * density.sf(high))
            assert float(g) == pytest.approx(want, abs=2e-6)
    c = np.asarray(equivalence.absorbed(jnp.float32([5.0, 1.0]), jnp.float32([1.0, 1.0])))
    x = rng.normal(5.0, 1.0, 100_000)
    wrong = np.mean(np.abs(np.maximum(x, 0) - (np.maximum(x - c[0], 0) + c[0])) > 1e-9)
    assert wrong == pytest.approx(0.00135, abs=5e-4) and c[1] == 0
