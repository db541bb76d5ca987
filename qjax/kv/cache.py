"""What a key or value cache must offer to attention, whatever it stores."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jax import Array


@runtime_checkable
class Cache(Protocol):
    """A codec for the keys or the values of one attention layer.

    A cache is a frozen, hashable description; its state is a pytree that travels through jit, scan and while loops. A
    decoder holds one codec for keys and one for values, since published methods treat them differently.

    `positions` are the absolute positions of the tokens, int32 [batch, tokens]. A negative position marks padding: such
    a token is not stored and nobody attends to it, so left-padded batches need nothing else. Appending n tokens at
    once and one by one must lead to the same state.

    Attributes:
        exact_prefix: how many of the first positions are kept in full precision (attention sinks).
        window: how many of the latest positions are kept in full precision.
    """

    @property
    def exact_prefix(self) -> int: ...

    @property
    def window(self) -> int: ...

    def bits(self, dim: int) -> float:
        """Stored bits per element of heads of `dim` channels, scales included."""
        ...

    def init(self, batch: int, capacity: int, heads: int, dim: int) -> Any:
        """An empty state for `capacity` positions."""
        ...

    def append(self, state: Any, x: Array, positions: Array) -> Any:
        """Store x [batch, tokens, heads, dim] at `positions`."""
        ...

    def scores(self, state: Any, q: Array, positions: Array) -> Array:
        """Scores of q [batch, tokens, query heads, dim] against every slot.

        Returns:
            float32 [batch, query heads, tokens, capacity], unscaled.

        Slots that a query at its position may not see (later, empty or padding) hold `attention.MASKED`.
        """
        ...

    def mix(self, state: Any, p: Array) -> Array:
        """Sums of the values weighted by p [batch, query heads, tokens, capacity].

        Returns:
            float32 [batch, tokens, query heads, dim].
        """
        ...

    def decode(self, state: Any) -> tuple[Array, Array]:
        """What attention sees: float32 [batch, capacity, heads, dim] and the position in each slot, -1 where empty."""
        ...
