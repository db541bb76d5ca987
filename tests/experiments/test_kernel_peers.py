"""Public kernels beside ours: why one is left out, what is said of the fastest, and the table where they compile."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from experiments.benchmarks import kernels_aot, kernels_attention, kernels_experts, kernels_peers
from experiments.benchmarks.kernels_floor import Best, beside, said_beside
from experiments.benchmarks.kernels_peers import Built, Peer, missing, print_peers
from experiments.benchmarks.kernels_peers_attention import ATTENTION
from experiments.benchmarks.kernels_peers_table import PRODUCTS, experts
from qjax.kernels.aot import tpu
from qjax.kernels.aot.chips import CHIPS, roofline
from tests.kernels.aot_records import benchmark

LEAST = roofline(CHIPS["v6e"], 2 * 8 * 16 * 32, 1024)


def small(chip, M, K, N):
    return Built(jnp.dot, [((M, K), jnp.bfloat16), ((K, N), jnp.bfloat16)], 4 * M * N)


def unbuilt(chip, *sizes):
    raise AssertionError("a peer that is missing is not built")


def compiler(monkeypatch, *answers):
    """Every compilation takes the next answer."""
    left = iter(answers)
    monkeypatch.setattr(tpu, "estimate", lambda chip, f, *shapes: next(left))


def test_a_peer_that_is_not_installed_is_said_with_the_command(capsys):
    peer = Peer("another's product", unbuilt, "tokamaxx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kernels_peers.INSTALL, "tokamaxx", "tokamaxx")
        assert missing(peer) == "tokamaxx is not installed: pip install tokamaxx"
        assert print_peers([peer], "w4a16", "v6e", (8, 16, 32), LEAST, 1.0, False) is None
    assert "another's product none: tokamaxx is not installed: pip install tokamaxx" in capsys.readouterr().out


def test_a_peer_that_cannot_be_imported_is_said(capsys):
    def half(chip, *sizes):
        raise ModuleNotFoundError("No module named 'xprof'")

    assert print_peers([Peer("half", half)], "w4a16", "v6e", (8, 16, 32), LEAST, 1.0, False) is None
    assert "half none: it cannot be imported: No module named 'xprof'" in capsys.readouterr().out


def test_the_fastest_with_an_estimate_is_compared_with_and_never_below_its_bytes(monkeypatch, capsys):
    compiler(monkeypatch, tpu.Estimate(900, 5, 1), tpu.Estimate(1, 5, 1), tpu.Estimate(1), tpu.Estimate(problem="no"))
    peers = [Peer("slow", small), Peer("fast", small), Peer("unknown", small, None, "unknown"), Peer("broken", small)]
    best = print_peers(peers, "w4a16", "v6e", (8, 16, 32), LEAST, 1.0, True)
    slow, fast, unknown, broken = map(json.loads, capsys.readouterr().out.splitlines())
    bytes_moved = 2 * (8 * 16 + 16 * 32) + 4 * 8 * 32
    assert fast["cycles"] == round(roofline(CHIPS["v6e"], 1, bytes_moved).memory) > 1 and slow["cycles"] == 900
    assert best == Best("fast", fast["cycles"])
    assert unknown["cycles"] is None and unknown["unfollowed"] == "unknown" and unknown["estimated"] == 1
    assert broken["problem"] == "no" and broken["share"] is None and broken["beside"] == "w4a16"


def test_speed_of_a_peer_is_its_cycles_over_ours():
    record = beside(Best("fast", 300), 200)
    assert record == {"peer": "fast", "speed_of_peer": 1.5} and said_beside(record) == "   1.50 of the speed of fast"
    assert said_beside(beside(None, 200)) == said_beside(beside(Best("fast", 300), None)) == ""


def test_every_kind_of_kernel_has_a_peer_that_needs_jax_alone():
    kinds = {kernel.removesuffix(" sums").removesuffix(" codes") for kernel in kernels_aot.KERNELS}
    # What XLA does in front of a kernel stands in the table itself, and other layouts of a kind have its peers.
    kinds -= {"bf16 XLA", *kernels_aot.ROTATED, *kernels_aot.RULED, kernels_aot.CHAIN, "mxfp4pairs", "nvfp4pairs"}
    assert set(PRODUCTS) == kinds and set(ATTENTION) == set(kernels_attention.CODES)
    tables = [*PRODUCTS.values(), *ATTENTION.values(), *(experts(k, 8) for k in kernels_experts.KERNELS)]
    for peers in tables:
        assert any(peer.package is None for peer in peers)
        assert {peer.package for peer in peers} <= {None, *kernels_peers.INSTALL}


@pytest.mark.parametrize("kind", [kind for kind in PRODUCTS if kind != "w4a4"])  # XLA:CPU has no product of two int4
def test_xla_ways_are_the_products_they_name(kind):
    """Ones times ones: the sum over the depth, whatever the codes are stored in."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for built in [p.build("v6e", 8, 256, 16) for p in PRODUCTS[kind] if p.name.startswith("XLA")]:
            arguments = [jnp.ones(shape, dtype) for shape, dtype in built.arguments]
            y = built.function(*arguments)
            one = {"t4a16": float(kernels_aot.NF4.values()[1])}.get(kind, 1.0)
            assert y.shape == (8, 16) and jnp.allclose(y, 256 * one, rtol=1e-2)


SIZED = [(peer, (2, 8, 2, 256, 128)) for peer in ATTENTION["int8"]] + [
    (peer, (32, 256, 256)) for peer in experts("w8a16", 8) if peer.package is None
]


@pytest.mark.parametrize(("peer", "sizes"), SIZED, ids=[peer.name for peer, _ in SIZED])
def test_peers_for_attention_and_experts_are_lowered_for_a_tpu(peer, sizes):
    """Under the promotion of their own packages: JAX's defaults."""
    built = peer.build("v6e", *sizes)
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in built.arguments]
    device = AbstractDevice(device_kind=CHIPS["v6e"].kind, num_cores=1, platform="tpu")
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)),
    ):
        lowered = jax.jit(built.function).trace(*arguments).lower(lowering_platforms=("tpu",))
    assert ("tpu_custom_call" in lowered.as_text()) == peer.name.startswith("jax")


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
@pytest.mark.slow
def test_another_product_is_compiled_and_ours_compared_with_the_fastest():
    *peers, ours = benchmark("--peers --sizes 1024x1024 --tokens 16 --chips v6e --kernels w8a8")
    theirs = {r["kernel"]: r for r in peers}
    assert theirs["jax pallas matmul"]["problem"] is None and ours["kernel"] == "w8a8"
    assert ours["peer"] in theirs and ours["speed_of_peer"] is not None
