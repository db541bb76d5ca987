"""What a rounding needs of an element."""

from __future__ import annotations

from typing import Protocol

from jax import Array


class Values(Protocol):
    """Representable values: the neighbours of a number, and the code of the nearest. Every element is one."""

    def encode(self, x: Array, table: Array | None = None) -> Array: ...
    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]: ...
