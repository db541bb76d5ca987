"""Plan of one dot: how x and the result are rearranged around matmul(x [batch..., tokens..., K], op)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators.atoms import Atom, Axis, covers, size


@dataclass(frozen=True)
class Plan:
    """matmul(operand(x), op) is the dot up to `result`; positions count the pieces axes were cut into."""

    op: Any
    x_axes: list[int]  # x axes: batch, free, contracted
    x_cut: list[int]  # their sizes, batch and contracted ones cut into atoms
    x_order: list[int]  # those pieces in the order of the operator: batch, free, K
    x_shape: list[int]  # merged again; operator batch axes that x does not have are 1
    lead: tuple[int, ...]  # the operator's batch shape
    summed: tuple[int, ...]  # operator batch axes that the dot contracts
    y_cut: list[int]
    y_groups: tuple[list[int], list[int], list[int]]  # pieces of y: batch, x free, view free
    y_shapes: tuple[list[int], list[int], list[int]]

    def operand(self, x: jax.Array) -> jax.Array:
        """Bring x to [operator batch..., free..., K]."""
        x = x.transpose(self.x_axes).reshape(self.x_cut).transpose(self.x_order).reshape(self.x_shape)
        return jnp.broadcast_to(x, (*self.lead, *x.shape[len(self.lead) :]))

    def result(self, y: jax.Array, view_first: bool) -> jax.Array:
        """[operator batch..., free..., N] as the dot's output."""
        if self.summed:
            y = y.sum(self.summed)
        groups = (0, 2, 1) if view_first else (0, 1, 2)
        y = y.reshape(self.y_cut).transpose([p for g in groups for p in self.y_groups[g]])
        return y.reshape([n for g in groups for n in self.y_shapes[g]])


def plan(
    op: Any,
    axes: tuple[Axis, ...],
    x_shape: Sequence[int],
    contract: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]],
) -> Plan | None:
    """The plan for contracting and batching (view axes, x axes); None where pieces of K or N would be split apart."""
    inner_axes, joint_axes = ([i % len(axes) for i in pair[0]] for pair in (contract, batch))
    x_inner, x_joint = ([i % len(x_shape) for i in pair[1]] for pair in (contract, batch))
    outer_axes = [i for i in range(len(axes)) if i not in (*inner_axes, *joint_axes)]
    x_free = [i for i in range(len(x_shape)) if i not in (*x_inner, *x_joint)]
    inner, joint, outer = (
        [a for i in group for a in axes[i] if a[2] != 1] for group in (inner_axes, joint_axes, outer_axes)
    )

    K, N = op.shape[-2:]
    if _whole(inner, -2, K) and _whole(outer, -1, N) and not _any(joint, -1, -2):
        pass
    elif _whole(inner, -1, N) and _whole(outer, -2, K) and not _any(joint, -1, -2):
        op = dispatch.transpose(op)
        inner, joint, outer = (
            [({-1: -2, -2: -1}.get(i, i), stride, n) for i, stride, n in group] for group in (inner, joint, outer)
        )
    else:
        return None
    if _any(inner, -1) or _any(outer, -2):
        return None

    rank, lead = len(op.shape), tuple(op.shape[:-2])
    roles = {}
    for place in range(-rank, -2):
        owners = [g for g in (joint, inner, outer) if _any(g, place)]
        if len(owners) > 1 or (owners and not _whole(owners[0], place, op.shape[place])):
            return None
        roles[place] = owners[0] if owners else None  # None: an axis of size 1

    free = [x_shape[i] for i in x_free]
    joint_at = list(range(len(joint)))
    inner_at = [len(joint) + len(free) + k for k in range(len(inner))]
    order, shape = [], []
    for place, group in roles.items():
        order += (
            []
            if group is None or group is outer
            else _positions(group, place, joint_at if group is joint else inner_at)
        )
        shape.append(1 if group is None or group is outer else op.shape[place])
    order += [len(joint) + k for k in range(len(free))] + _positions(inner, -2, inner_at)

    cut: list[int] = []
    at: dict[int, int] = {}  # (identity of an atom's slot) -> piece of y
    slots = {id(joint): 0, id(outer): len(joint)}
    free_at: list[int] = []
    for place, group in [*roles.items(), (0, None), (-1, outer)]:  # place 0 stands for the free axes of x
        if place == 0:
            free_at = list(range(len(cut), len(cut) + len(free)))
            cut += free
        elif group is joint or group is outer:
            for k in _positions(group, place, list(range(len(group)))):
                at[slots[id(group)] + k] = len(cut)
                cut.append(group[k][2])
    return Plan(
        op=op,
        x_axes=[*x_joint, *x_free, *x_inner],
        x_cut=[*(a[2] for a in joint), *free, *(a[2] for a in inner)],
        x_order=order,
        x_shape=[*shape, *free, op.shape[-2]],
        lead=lead,
        summed=tuple(k for k, group in enumerate(roles.values()) if group is inner),
        y_cut=cut,
        y_groups=(
            [at[k] for k in range(len(joint))],
            free_at,
            [at[len(joint) + k] for k in range(len(outer))],
        ),
        y_shapes=([size(axes[i]) for i in joint_axes], free, [size(axes[i]) for i in outer_axes]),
    )


def _any(pieces: Sequence[Atom], *places: int) -> bool:
    return any(a[0] in places for a in pieces)


def _whole(pieces: Sequence[Atom], place: int, length: int) -> bool:
    return covers([a for a in pieces if a[0] == place], place, length)


def _positions(pieces: Sequence[Atom], place: int, at: Sequence[int]) -> list[int]:
    """Where the atoms of one operator axis lie, outermost first."""
    mine = [k for k, a in enumerate(pieces) if a[0] == place]
    return [at[k] for k in sorted(mine, key=lambda k: -pieces[k][1])]
