"""Records of what a function does with its leaves, and how a leaf becomes a matrix and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from qjax.operators.view import View
from qjax.trace.leaf import TRACED
from qjax.trace.paths import Where, is_leaf, select


@dataclass(frozen=True)
class Use:
    """One use of a leaf. Axes are negative ones of the stored leaf: a product sees it as [batch..., K, N].

    `input_id` is equal for products that read the same activation in the same order; `tokens` counts rows of one call;
    `index` lists (axis, where) of axes indexed before the use: a number, "scanned" (one layer an iteration) or
    "traced".
    """

    path: str
    primitive: str
    shape: tuple[int, ...]
    dtype: str
    batch_axes: tuple[int, ...] = ()
    contract_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...] = ()
    input_id: int | None = None
    tokens: int = 0
    index: tuple[tuple[int, int | str], ...] = ()
    kind: str = "other"  # "product" with an activation, "lookup" of rows (its output axis), or "other"
    flaw: str = ""  # why this product cannot be written with the whole leaf as one matrix a batch entry

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """[batch..., K, N]."""
        size = lambda axes: math.prod(self.shape[a] for a in axes)  # noqa: E731
        return (*(self.shape[a] for a in self.batch_axes), size(self.contract_axes), size(self.output_axes))

    @property
    def pooled_axes(self) -> tuple[int, ...]:
        """Batch axes indexed by a traced number: their entries share one statistic."""
        return tuple(a for a, i in self.index if i == TRACED)

    def to_matrix(self, w: Any) -> Any:
        """The leaf w (array, operator or QArray) as [batch..., K, N]. ValueError when its shape is another one."""
        self._check(w, self.shape)
        order = (*self.batch_axes, *self.contract_axes, *self.output_axes)
        positive = [a % len(self.shape) for a in order]
        if is_leaf(w):
            view = View.of(w).permute(positive).reshape(self.matrix_shape)
            if view is None:
                raise ValueError(f"leaf {self.path!r}: its operator does not reshape to {self.matrix_shape}")
            return _plain_operator(view)
        return jnp.transpose(jnp.asarray(w), positive).reshape(self.matrix_shape)

    def from_matrix(self, op: Any) -> Any:
        """The leaf that stands for a matrix [batch..., K, N].

        An array in the stored layout; an operator as it is where the layouts agree, else under a `View`. ValueError
        when the shape is another one.
        """
        self._check(op, self.matrix_shape)
        order = [a % len(self.shape) for a in (*self.batch_axes, *self.contract_axes, *self.output_axes)]
        if not is_leaf(op):
            moved = jnp.asarray(op).reshape([self.shape[a] for a in order])
            return jnp.transpose(moved, [int(i) for i in np.argsort(order)])
        if order == list(range(len(self.shape))) and self.matrix_shape == self.shape:
            return op
        return View.store(op, self.shape, self.contract_axes, self.output_axes)

    def _check(self, w: Any, shape: tuple[int, ...]) -> None:
        if tuple(w.shape) != shape:
            raise ValueError(f"leaf {self.path!r}: expected shape {shape}, got {tuple(w.shape)}")


def _plain_operator(view: View) -> Any:
    """The operator under a view that changes nothing."""
    return view.op if View.of(view.op).axes == view.axes else view


class Uses(Mapping[str, tuple[Use, ...]]):
    """{path: its uses in program order}. `excluded` gives the reason for every leaf that is no default target."""

    def __init__(
        self, found: Mapping[str, tuple[Use, ...]], excluded: Mapping[str, str], impossible: Mapping[str, str]
    ) -> None:
        self._found, self.excluded, self.impossible = dict(found), dict(excluded), dict(impossible)

    def __getitem__(self, path: str) -> tuple[Use, ...]:
        return self._found[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def matrix(self, path: str) -> Use:
        """The use that says how the leaf is a matrix: its first product, or a lookup. ValueError for a leaf without."""
        for kind in ("product", "lookup"):
            for use in self._found.get(path, ()):
                if use.kind == kind:
                    return use
        raise ValueError(
            f"leaf {path!r} has no product with an activation: {self.impossible.get(path, 'it is unused')}"
        )

    def targets(self, where: Where | None = None) -> tuple[str, ...]:
        """Leaves to quantize, in program order: by default those not in `excluded`; with `where`, those it picks.

        ValueError when where= matches nothing, or picks a leaf that cannot be a matrix.
        """
        if where is None:
            return tuple(p for p in self._found if p not in self.excluded)
        chosen = select(tuple(self._found), where)
        possible = tuple(p for p in chosen if p not in self.impossible)
        if not possible:
            reasons = "; ".join(f"{p!r}: {self.impossible[p]}" for p in chosen[:4])
            raise ValueError(f"where= picked only leaves that are no matrices: {reasons}")
        return possible

    def groups(self, targets: Sequence[str] | None = None) -> tuple[tuple[str, ...], ...]:
        """Targets that read the same input, together (q, k, v; gate, up), in program order."""
        by_input: dict[Any, list[str]] = {}
        for path in self.targets() if targets is None else targets:
            by_input.setdefault(self.matrix(path).input_id, []).append(path)
        return tuple(tuple(paths) for paths in by_input.values())
