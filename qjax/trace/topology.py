"""How the parameters of a network are wired, as a plain record: what a fold needs to know, and nothing it computes.

Our models derive it from their architecture; for another network a user may write one. Axes are negative and of the
stored leaf, so one record serves a layer's own leaves and the same leaves stacked over layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Port:
    """The axis of a stored leaf along which channels enter or leave it; `bias`: a leaf added to those channels."""

    path: str
    axis: int
    bias: str | None = None


@dataclass(frozen=True)
class Norm:
    """A gain (and bias) that multiplies channels, and everything that reads its output: exactly these consumers."""

    gain: str
    consumers: tuple[Port, ...]
    bias: str | None = None


@dataclass(frozen=True)
class Values:
    """Value channels [kv_heads, head_dim] mixed over tokens and read as [heads, head_dim]; heads come in groups.

    Any invertible matrix per key-value head may go into v and its inverse into the o of its `heads // kv_heads` heads.
    """

    v: Port
    o: Port
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Scores:
    """Query and key channels that meet in a dot product. `rope`: which channels turn together.

    None: any invertible matrix per head, and its inverse transposed; "halves" (i with i + head_dim / 2) or "neighbours"
    (2i with 2i + 1): only a scale per pair and a rotation within it commute with the position.
    """

    q: Port
    k: Port
    heads: int
    kv_heads: int
    head_dim: int
    rope: str | None = "halves"


@dataclass(frozen=True)
class Product:
    """down reads activation(gate) * up: channel scales pass from down into up, permutations into up and gate.

    `homogeneous`: without a gate, activation(s u) = s activation(u) for s > 0, as a ReLU's, so that scales pass.
    """

    gate: Port | None  # None: down reads activation(up), and only permutations pass, scales if it is homogeneous
    up: Port
    down: Port
    homogeneous: bool = False

    @property
    def passes_scales(self) -> bool:
        """Whether a positive scale of down's channels may move into up."""
        return self.gate is not None or self.homogeneous


@dataclass(frozen=True)
class Topology:
    """The wiring of a network.

    `readers` and `writers` are all ports on the residual stream: a rotation of the stream is exact only if every one of
    them agrees. `norms` lists the gains between the stream and its readers; `rms` says they commute with rotations once
    their gains are folded (LayerNorm does after its mean is projected out).
    """

    readers: tuple[Port, ...] = ()
    writers: tuple[Port, ...] = ()
    norms: tuple[Norm, ...] = ()
    values: tuple[Values, ...] = ()
    scores: tuple[Scores, ...] = ()
    products: tuple[Product, ...] = ()
    rms: bool = True

    def ports(self) -> Iterator[Port]:
        """Every port in the record."""
        return _ports(self)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """ValueError where the record does not fit the leaves {path: shape}: an absent path, axes of unequal length."""
        for port in self.ports():
            _length(port, shapes)
        for name in ("readers", "writers"):
            stream = {_length(p, shapes): p.path for p in getattr(self, name)}
            if len(stream) > 1:
                (a, first), (b, second) = list(stream.items())[:2]
                raise ValueError(f"{name} disagree on the width of the stream: {first} has {a}, {second} has {b}")
        for norm in self.norms:
            if norm.gain not in shapes:
                raise ValueError(f"topology names {norm.gain!r}, which is no leaf")
            for port in norm.consumers:
                _equal(f"norm {norm.gain}", shapes[norm.gain][-1], f"its reader {port.path}", _length(port, shapes))
        for pair in self.values:
            _equal(f"{pair.v.path}", _length(pair.v, shapes), "kv_heads * head_dim", pair.kv_heads * pair.head_dim)
            _equal(f"{pair.o.path}", _length(pair.o, shapes), "heads * head_dim", pair.heads * pair.head_dim)
        for pair in self.scores:
            if pair.rope not in (None, "halves", "neighbours"):
                raise ValueError(f"rope={pair.rope!r} of {pair.q.path} is not None, 'halves' or 'neighbours'")
            _equal(f"{pair.q.path}", _length(pair.q, shapes), "heads * head_dim", pair.heads * pair.head_dim)
            _equal(f"{pair.k.path}", _length(pair.k, shapes), "kv_heads * head_dim", pair.kv_heads * pair.head_dim)
        for product in self.products:
            sides = (product.up, product.down, *([product.gate] if product.gate else []))
            for port in sides[1:]:
                _equal(sides[0].path, _length(sides[0], shapes), port.path, _length(port, shapes))


def _ports(record: Any) -> Iterator[Port]:
    if isinstance(record, Port):
        yield record
    elif isinstance(record, tuple):
        for item in record:
            yield from _ports(item)
    elif is_dataclass(record):
        for field in fields(record):
            yield from _ports(getattr(record, field.name))


def _length(port: Port, shapes: Mapping[str, tuple[int, ...]]) -> int:
    for path in (port.path, *([port.bias] if port.bias else [])):
        if path not in shapes:
            raise ValueError(f"topology names {path!r}, which is no leaf")
    shape = shapes[port.path]
    if not -len(shape) <= port.axis < 0:
        raise ValueError(f"axis {port.axis} of {port.path!r} is not a negative axis of its shape {shape}")
    return shape[port.axis]


def _equal(a: str, n: int, b: str, m: int) -> None:
    if n != m:
        raise ValueError(f"topology: {a} has {n} channels, {b} {m}")
