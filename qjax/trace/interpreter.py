"""The evaluation loop: a jaxpr equation by equation, with tracked leaves in place of some arrays.

A rule takes (equation, inputs, tape) and returns the outputs, or None: then every leaf among the inputs becomes an
array
again and the equation is bound as it stands. What is done with arrays and what is written down on the way is the tape's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from qjax.trace import versions
from qjax.trace.leaf import Leaf
from qjax.trace.meeting import Meeting

Rule = Callable[[Any, Sequence[Any], Any], "list[Any] | None"]


class Tape(Protocol):
    """What an evaluation does with the values it meets."""

    @property
    def rules(self) -> Mapping[str, Rule]: ...

    def bind(self, eqn: Any, inputs: Sequence[Any]) -> list[Any]:
        """Evaluate an equation on arrays."""
        ...

    def dense(self, leaf: Leaf, eqn: Any) -> Any:
        """The array a leaf stands for; `eqn` is the equation that asks for it."""
        ...

    def enters(self, eqn: Any) -> bool:
        """Whether to apply the rule of an equation that no leaf reaches (it holds a site, say)."""
        ...

    def constant(self, value: Any) -> Any:
        """A number or array written in the program."""
        ...

    def start(self, index: Any, limit: int) -> Any:
        """Where a dynamic slice begins, clipped to [0, limit]: an int when it is known while tracing."""
        ...

    def use(self, meeting: Meeting) -> None:
        """A leaf meets an activation in a product."""
        ...

    def looked_up(self, leaf: Leaf, eqn: Any, dim: int) -> None:
        """Rows of a plain leaf, entries along axis dim, are gathered."""
        ...


def array(value: Any, tape: Tape, eqn: Any) -> Any:
    """The value itself, a leaf turned into its array."""
    return tape.dense(value, eqn) if isinstance(value, Leaf) else value


def evaluate(jaxpr: Any, args: Sequence[Any], tape: Tape) -> list[Any]:
    """The outputs of a jaxpr on arrays and leaves. Values are dropped after their last use."""
    inner, consts = versions.open_jaxpr(jaxpr)
    env: dict[Any, Any] = dict(
        zip([*inner.constvars, *inner.invars], [*map(tape.constant, consts), *args], strict=True)
    )
    last: dict[Any, int] = {}
    for i, eqn in enumerate(inner.eqns):
        last.update((v, i) for v in eqn.invars if not versions.is_literal(v))
    last.update((v, len(inner.eqns)) for v in inner.outvars if not versions.is_literal(v))

    def read(v: Any) -> Any:
        return tape.constant(v.val) if versions.is_literal(v) else env[v]

    for i, eqn in enumerate(inner.eqns):
        inputs = [read(v) for v in eqn.invars]
        outputs = apply(eqn, inputs, tape)
        env.update(zip(eqn.outvars, outputs, strict=True))
        for v in {v for v in eqn.invars if not versions.is_literal(v) and last[v] == i}:
            del env[v]
    return [read(v) for v in inner.outvars]


def apply(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any]:
    """One equation: by its rule where a leaf arrives (or the tape wants to look inside), else bound."""
    outputs = None
    if any(isinstance(x, Leaf) for x in inputs) or tape.enters(eqn):
        rule = tape.rules.get(eqn.primitive.name)
        outputs = rule(eqn, inputs, tape) if rule else None
    return tape.bind(eqn, [array(x, tape, eqn) for x in inputs]) if outputs is None else outputs
