"""Composed(maps): several maps one after the other."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax

from qjax.nodes import node
from qjax.operators.operator import Map


@node
@dataclass(frozen=True, eq=False)
class Composed(Map):
    """x through every map in turn, the first one first: a tap that rotates and then rounds."""

    maps: tuple[Map, ...]

    @property
    def nonlinear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any of them rounds."""
        return any(m.nonlinear for m in self.maps)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return max((m.batch_shape for m in self.maps), key=len, default=())

    def apply(self, x: jax.Array) -> jax.Array:
        return functools.reduce(lambda x, m: m.apply(x), self.maps, x)

    def transpose(self) -> Composed:
        return Composed(tuple(m.transpose() for m in reversed(self.maps)))

    def linear(self) -> Composed | None:
        parts = tuple(part for m in self.maps if (part := m.linear()) is not None)
        return Composed(parts) if parts else None

    def shift(self) -> jax.Array | None:
        total: jax.Array | None = None
        for m in self.maps:
            part, own = m.linear(), m.shift()
            moved = total if total is None or part is None else part.apply(total[..., None, :])[..., 0, :]
            total = own if moved is None else moved if own is None else moved + own
        return total

    def inverse(self) -> Composed:
        return Composed(tuple(m.inverse() for m in reversed(self.maps)))

    def features(self, outputs: int) -> int:
        return functools.reduce(lambda n, m: m.features(n), reversed(self.maps), outputs)

    def results(self, inputs: int) -> int:
        return functools.reduce(lambda n, m: m.results(n), self.maps, inputs)
