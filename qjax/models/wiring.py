"""How a model's parameters are wired, derived from its architecture."""

from __future__ import annotations

from qjax.models.architecture import Architecture
from qjax.trace.topology import Norm, Port, Product, Scores, Topology, Values


def topology(arch: Architecture, scan: bool = False) -> Topology:
    """The wiring record of a decoder or an encoder; with `scan` the paths are those of stacked layers.

    A tied embedding is a writer (its rows enter the stream), a reader and the last norm's consumer (as the head).

    What an architecture forbids is not in the record. A norm on what a layer adds to the stream has a gain that no
    matrix can take, so that no rotation of the stream is exact: there are neither readers nor writers; nor are there
    where the stream itself is normalized, whose gains the next sum reads too, or where its states come out. Normalized
    queries and keys pass no scale, and the record has no word for pairs among the first channels of a head: no scores.

    A leaf of experts is one port: what is folded into it is folded into each of its matrices. The router and the gate
    of a shared expert read the same norm.

    >>> arch = Architecture(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
    >>> topology(arch).products[1].down
    Port(path='layers/1/ffn/down', axis=-2, bias=None)
    """
    last = _head(arch)
    readers, writers = [], _inputs(arch)
    norms, values, scores, products = [], [], [], []
    sizes = {"heads": arch.heads, "kv_heads": arch.kv_heads, "head_dim": arch.head_dim}
    for layer, prefix in enumerate(["layers"] if scan else [f"layers/{i}" for i in range(arch.layers)]):
        attn = f"{prefix}/attn"
        heads = tuple(Port(f"{attn}/{name}", -2) for name in "qkv")
        own, gates = _feed_forward(arch, f"{prefix}/ffn", layer)
        inner = (*gates, *(Port(p.path, -2) for one in own for p in (one.gate, one.up) if p is not None))
        readers += [*heads, *inner]
        writers += [_output(f"{attn}/o", arch.o_bias), *(_output(p.down.path, _biased(arch, layer)) for p in own)]
        if "attn_norm" in arch.norms:
            norms += [_norm(arch, f"{prefix}/attn_norm", heads), _norm(arch, f"{prefix}/ffn_norm", inner)]
        q, k, v = (_output(f"{attn}/{name}", arch.qkv_bias) for name in "qkv")
        values.append(Values(v, Port(f"{attn}/o", -2), **sizes))
        if arch.qk_norm is None and arch.rotated in (0, arch.head_dim):
            scores.append(Scores(q, k, **sizes, rope="halves" if arch.rotated else None))
        products += own
    if last and arch.placement != "sum":
        norms.append(_norm(arch, "norm", last))
    stream = ((*readers, *last), tuple(writers)) if arch.placement == "pre" and last else ((), ())
    return Topology(*stream, tuple(norms), tuple(values), tuple(scores), tuple(products), rms=arch.norm == "rms")


def _inputs(arch: Architecture) -> list[Port]:
    """What writes the stream first."""
    first = [_output("patches", True), Port("first", -1)] if arch.pictures else [Port("embed", -1)]
    tables = {"positions": arch.learned_positions, "types": arch.encoding is not None and arch.encoding.types > 0}
    return [*first, *(Port(name, -1) for name, there in tables.items() if there)]


def _head(arch: Architecture) -> tuple[Port, ...]:
    """What reads the last states; nothing if they come out."""
    if arch.encoding is None:
        return (Port("embed", -1) if arch.tied else Port("head", -2),)
    names = {"states": (), "words": ("transform",), "pooled": ("pooler",)}.get(arch.encoding.head, ("head",))
    return tuple(Port(name, -2) for name in names)


def _feed_forward(arch: Architecture, ffn: str, layer: int) -> tuple[list[Product], tuple[Port, ...]]:
    """The products of a layer's FFN or of its experts, and what else reads the same input."""

    def product(prefix: str, bias: bool) -> Product:
        gate = _output(f"{prefix}/gate", bias) if arch.gated else None
        return Product(gate, _output(f"{prefix}/up", bias), Port(f"{prefix}/down", -2), arch.activation == "relu")

    if arch.experts is None or not arch.routed(layer):
        return [product(ffn, arch.ffn_bias)], ()
    shared = [product(f"{ffn}/shared", False)] if arch.experts.shared else []
    gates = [Port(f"{ffn}/router", -2), *([Port(f"{ffn}/shared_gate", -2)] if shared else [])]
    return [product(f"{ffn}/experts", False), *shared], tuple(gates)


def _biased(arch: Architecture, layer: int) -> bool:
    return arch.ffn_bias and not arch.routed(layer)


def _norm(arch: Architecture, path: str, consumers: tuple[Port, ...]) -> Norm:
    return Norm(f"{path}/scale", consumers, None if arch.norm == "rms" else f"{path}/bias")


def _output(path: str, bias: bool) -> Port:
    return Port(path, -1, f"{path}_bias" if bias else None)
