"""How a decoder's parameters are wired, derived from its architecture."""

from __future__ import annotations

from qjax.models.architecture import Architecture
from qjax.trace.topology import Norm, Port, Product, Scores, Topology, Values


def topology(arch: Architecture, scan: bool = False) -> Topology:
    """The wiring record of a decoder; with `scan` the paths are those of stacked layers.

    A tied embedding is a writer (its rows enter the stream), a reader and the last norm's consumer (as the head).

    What an architecture forbids is not in the record. A norm on what a layer adds to the stream has a gain that no
    matrix can take, so that no rotation of the stream is exact: there are neither readers nor writers. Normalized
    queries and keys pass no scale, and the record has no word for pairs among the first channels of a head: no scores.

    >>> arch = Architecture(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
    >>> topology(arch).products[1].down
    Port(path='layers/1/ffn/down', axis=-2, bias=None)
    """
    head = Port("embed", -1) if arch.tied else Port("head", -2)
    readers, writers = [], [Port("embed", -1)]
    if arch.learned_positions:
        writers.append(Port("positions", -1))
    norms, values, scores, products = [], [], [], []
    sizes = {"heads": arch.heads, "kv_heads": arch.kv_heads, "head_dim": arch.head_dim}
    for prefix in ["layers"] if scan else [f"layers/{i}" for i in range(arch.layers)]:
        attn, ffn = f"{prefix}/attn", f"{prefix}/ffn"
        heads = tuple(Port(f"{attn}/{name}", -2) for name in "qkv")
        up, down = _output(f"{ffn}/up", arch.ffn_bias), Port(f"{ffn}/down", -2)
        gate = _output(f"{ffn}/gate", arch.ffn_bias) if arch.gated else None
        inner = tuple(Port(port.path, -2) for port in (gate, up) if port is not None)
        readers += [*heads, *inner]
        writers += [_output(f"{attn}/o", arch.o_bias), _output(f"{ffn}/down", arch.ffn_bias)]
        if "attn_norm" in arch.norms:
            norms += [_norm(arch, f"{prefix}/attn_norm", heads), _norm(arch, f"{prefix}/ffn_norm", inner)]
        q, k, v = (_output(f"{attn}/{name}", arch.qkv_bias) for name in "qkv")
        values.append(Values(v, Port(f"{attn}/o", -2), **sizes))
        if arch.qk_norm is None and arch.rotated in (0, arch.head_dim):
            scores.append(Scores(q, k, **sizes, rope="halves" if arch.rotated else None))
        products.append(Product(gate, up, down, homogeneous=arch.activation == "relu"))
    norms.append(_norm(arch, "norm", (head,)))
    stream = ((*readers, head), tuple(writers)) if arch.placement == "pre" else ((), ())
    return Topology(*stream, tuple(norms), tuple(values), tuple(scores), tuple(products), rms=arch.norm == "rms")


def _norm(arch: Architecture, path: str, consumers: tuple[Port, ...]) -> Norm:
    return Norm(f"{path}/scale", consumers, None if arch.norm == "rms" else f"{path}/bias")


def _output(path: str, bias: bool) -> Port:
    return Port(path, -1, f"{path}_bias" if bias else None)
