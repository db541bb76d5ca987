"""Outliers found where they were planted, and nowhere else; definitions against numpy loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qjax.diagnose import massive_activations, outlier_features, outlier_tokens, super_weights
from qjax.models import Architecture, Decoder
from qjax.trace.sites import captured
from tests import draw

ARCH = Architecture(vocab=32, width=16, layers=4, heads=2, kv_heads=1, head_dim=8, ffn=32)


def test_outlier_features_are_llm_int8s():
    random = np.random.default_rng(0)
    hidden = random.normal(size=(8, 2, 50, 24)).astype(np.float32)
    hidden[:2, :, :30, 3] = 6.0  # in a quarter of the layers, at 15 % of all positions: one
    hidden[:1, :, :, 5] = 9.0  # in one layer of eight: none
    hidden[:, 0, :5, 7] = -7.0  # everywhere, at 5 % of the positions: none
    hidden[:, 0, :6, 9] = -7.0  # at 6 %: one
    expected = []
    for h in range(24):
        large = np.abs(hidden[..., h]) >= 6
        layers = np.mean([large[layer].any() for layer in range(8)])
        expected.append(layers >= 0.25 and large.mean() >= 0.06)
    np.testing.assert_array_equal(outlier_features(jnp.asarray(hidden)), expected)
    assert np.flatnonzero(expected).tolist() == [3, 9]


def test_massive_activations_and_outlier_tokens():
    hidden = np.random.default_rng(1).normal(scale=0.1, size=(40, 16)).astype(np.float32)
    hidden[0, 5], hidden[7, 5], hidden[9, 2] = -2000.0, 101.0, 99.0
    found = massive_activations(jnp.asarray(hidden))
    assert np.argwhere(found).tolist() == [[0, 5], [7, 5]]  # the median is about 0.067, a thousand of it 67
    assert not massive_activations(jnp.asarray(100 * hidden.clip(-1, 1))).any()  # large, but not beside the others
    tokens = outlier_tokens(jnp.asarray(np.stack([hidden, hidden[::-1]])))
    top = np.abs(hidden).max(-1)
    np.testing.assert_array_equal(tokens[0], top > 64 * np.median(top))
    np.testing.assert_array_equal(tokens[1], np.asarray(tokens[0])[::-1])
    assert np.flatnonzero(tokens[0]).tolist() == [0, 7, 9]


def test_a_planted_super_weight_is_found_and_its_removal_ends_the_spike():
    params, tokens = draw.parameters(ARCH), draw.integers(0, 0, 32, 1, 12)
    look = jax.jit(captured(Decoder(ARCH), "layers/*/ffn/product", "layers/2/residual/*"))

    def spikes(value):
        """Weight [11, 6] of layer 2's down projection and, so that its input is large as well, its gate and up."""
        layers = {**params["layers"], "2": {**params["layers"]["2"]}}
        ffn = {name: np.array(w) for name, w in layers["2"]["ffn"].items()}
        ffn["gate"][:, 11] *= 4
        ffn["up"][:, 11] *= 4
        ffn["down"][11, 6] = value
        layers["2"]["ffn"] = {name: jnp.asarray(w) for name, w in ffn.items()}
        _, sites = look({**params, "layers": layers}, tokens)
        x = jnp.stack([sites[f"layers/{i}/ffn/product"][0] for i in range(ARCH.layers)])
        return sites, super_weights(x, jnp.stack([layers[str(i)]["ffn"]["down"] for i in range(ARCH.layers)]))

    sites, found = spikes(500.0)
    assert found.found.tolist() == [False, False, True, False]
    assert (int(found.row[2]), int(found.column[2])) == (11, 6)
    np.testing.assert_allclose(found.share[2], 1, atol=0.02)
    added = np.asarray(sites["layers/2/residual/ffn"]) - np.asarray(sites["layers/2/residual/attn"])
    np.testing.assert_allclose(np.abs(added).max(), abs(found.output[2]), rtol=1e-4)
    assert not spikes(0.0)[1].found.any()
