"""How a decoder's parameters are wired, derived from its architecture."""

from __future__ import annotations

from qjax.models.architecture import Architecture
from qjax.trace.topology import Norm, Port, Product, Scores, Topology, Values


def topology(arch: Architecture, scan: bool = False) -> Topology:
    """The wiring record of a decoder; with `scan` the paths are those of stacked layers.

    A tied embedding is a writer (its rows enter the stream), a reader and the last norm's consumer (as the head).

    >>> arch = Architecture(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
    >>> topology(arch).products[1].down
    Port(path='layers/1/ffn/down', axis=-2, bias=None)
    """
    head = Port("embed", -1) if arch.tied else Port("head", -2)
    readers, writers = [], [Port("embed", -1)]
    norms, values, scores, products = [], [], [], []
    sizes = {"heads": arch.heads, "kv_heads": arch.kv_heads, "head_dim": arch.head_dim}
    for prefix in ["layers"] if scan else [f"layers/{i}" for i in range(arch.layers)]:
        attn, ffn = f"{prefix}/attn", f"{prefix}/ffn"
        heads = tuple(Port(f"{attn}/{name}", -2) for name in "qkv")
        gated = (Port(f"{ffn}/gate", -2), Port(f"{ffn}/up", -2))
        readers += [*heads, *gated]
        writers += [_output(f"{attn}/o", arch.o_bias), _output(f"{ffn}/down", arch.ffn_bias)]
        norms += [Norm(f"{prefix}/attn_norm/scale", heads), Norm(f"{prefix}/ffn_norm/scale", gated)]
        q, k, v = (_output(f"{attn}/{name}", arch.qkv_bias) for name in "qkv")
        values.append(Values(v, Port(f"{attn}/o", -2), **sizes))
        scores.append(Scores(q, k, **sizes, rope="halves"))
        gate, up = (_output(f"{ffn}/{name}", arch.ffn_bias) for name in ("gate", "up"))
        products.append(Product(gate, up, Port(f"{ffn}/down", -2)))
    norms.append(Norm("norm/scale", (head,)))
    return Topology(
        (*readers, head), tuple(writers), tuple(norms), tuple(values), tuple(scores), tuple(products), rms=True
    )


def _output(path: str, bias: bool) -> Port:
    return Port(path, -1, f"{path}_bias" if bias else None)
