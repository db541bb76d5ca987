"""The compiled programs of one run: one for each distinct block, whatever the depth of the model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qjax.statistics import CrossGram, Statistic
from qjax.trace.observe import observing
from qjax.trace.quantized import quantized
from qjax.trace.uses import Use, uses
from qjax.transforms.contract import Leaves
from qjax.transforms.leaves import materialized

Fn = Callable[[tuple[Any, ...], Any], Any]
Wanted = Mapping[int, tuple[Statistic, ...]]


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of the model: `fn(leaves, x) -> y` on the leaves named `ids`, in order. Equal blocks hold the same `fn`.

    `group`: it belongs to a group of parameters; what lies before and after the groups takes no part in windows.
    """

    name: str
    ids: tuple[str, ...]
    fn: Fn
    group: bool = True

    def of(self, leaves: Leaves) -> tuple[Any, ...]:
        """This block's leaves, in the order `fn` takes them."""
        return tuple(leaves[i] for i in self.ids)

    def ready(self, leaves: Leaves) -> tuple[Any, ...]:
        """The same, made dense for many forward passes."""
        return tuple(materialized(leaves[i]) for i in self.ids)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """The rows themselves, concatenated: a monoid for straight-line code, used to pair two streams."""

    name: str = "tokens"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch, 0, features), jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        x = x.astype(jnp.float32)
        return jnp.concatenate([value, x if weights is None else x * jnp.sqrt(weights)[..., None]], axis=-2)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.concatenate([a, b], axis=-2)

    def result(self, value: jax.Array) -> jax.Array:
        return value


class Programs:
    """The compiled programs of one run, one per distinct block function and set of statistics."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def run(self, fn: Fn) -> Fn:
        """`fn` on operator leaves: one object for all equal blocks."""
        return self._once(("run", fn), lambda: quantized(fn))

    def advance(self, fn: Fn) -> Fn:
        return self._once(("advance", fn), lambda: jax.jit(self.run(fn)))

    def loss(self, fn: Fn, loss: Callable[[Any, Any], jax.Array]) -> Callable[[tuple[Any, ...], Any], jax.Array]:
        return self._once(("loss", fn, loss), lambda: lambda leaves, x: loss(self.run(fn)(leaves, x), x))

    def joined(self, window: Sequence[Block], inner: bool = False) -> Block:
        """Consecutive blocks as one, which puts out what the last one does, or (`inner`) what each one does."""
        if len(window) == 1 and not inner:
            return window[0]
        sizes, fns = tuple(len(b.ids) for b in window), tuple(b.fn for b in window)

        def fn(leaves: tuple[Any, ...], x: Any) -> Any:
            left, outputs = iter(leaves), []
            for size, one in zip(sizes, fns, strict=True):
                x = one(tuple(itertools.islice(left, size)), x)
                outputs.append(x)
            return tuple(outputs) if inner else x

        name = f"{window[0].name}..{window[-1].name}"
        return Block(
            name, tuple(i for b in window for i in b.ids), self._once(("joined", fns, sizes, inner), lambda: fn)
        )

    def uses(self, fn: Fn, leaves: tuple[Any, ...], x: Any) -> Mapping[int, Use]:
        """How each leaf is a matrix, by position; traced on shapes alone."""

        def make() -> dict[int, Use]:
            found = uses(fn, leaves, x)
            return {int(p): found.matrix(p) for p in found if p not in found.impossible}

        return self._once(("uses", fn, str(jax.tree.map(jnp.shape, leaves))), make)

    def measure(self, fn: Fn, wanted: Wanted) -> Callable[..., Any]:
        """(leaves, x, weights, reference) -> statistics by position; what only the block's output needs is never run.

        Where a `CrossGram` is wanted, `reference` is the float stream beside: its leaves and its x.
        """

        def make() -> Callable[..., Any]:
            cross, tokens = CrossGram(), _Tokens()
            own = {str(p): tuple(tokens if s == cross else s for s in stats) for p, stats in wanted.items()}
            paired = {p: (tokens,) for p, stats in own.items() if tokens in stats}
            watch, beside = observing(fn, own), observing(fn, paired)

            def program(leaves: Any, x: Any, weights: Any, reference: tuple[Any, Any] | None) -> Any:
                found = {p: dict(stats) for p, stats in watch(leaves, x, weights)[1].items()}
                for p, true in (beside(*reference, weights)[1] if reference else {}).items():
                    pair = found[p].pop(tokens.name), true[tokens.name]
                    start = cross.init(pair[0].shape[-1], pair[0].shape[:-2])
                    found[p][cross.name] = cross.update(start, pair)
                return {int(p): stats for p, stats in found.items()}

            return jax.jit(program)

        return self._once(("measure", fn, _key(wanted)), make)

    def merge(self, wanted: Wanted) -> Callable[..., Any]:
        """Two sets of statistics as one; the first is used up."""

        def merge(a: Any, b: Any) -> Any:
            return {p: {s.name: s.merge(a[p][s.name], b[p][s.name]) for s in stats} for p, stats in wanted.items()}

        return self._once(("merge", _key(wanted)), lambda: jax.jit(merge, donate_argnums=0))

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _key(wanted: Wanted) -> tuple[Any, ...]:
    return tuple(sorted(wanted.items(), key=lambda item: item[0]))
