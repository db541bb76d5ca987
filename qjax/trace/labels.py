"""Where the tokens of a batch go: for each axis of a value, which axes of the per-token weights it runs over.

Labels follow a value from equation to equation, so that padding weights [batch, time] meet the rows they belong to
under any reshape, `vmap` or microbatch loop. None: the value does not depend on the batch. An empty axis label: no
tokens, or lost. A digit with a negative name is no token: heads, say, merged with the tokens into one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qjax.operators import atoms

Axis = tuple[tuple[Any, int, int], ...]  # atoms of the weights' axes, or of a Part of one
Labels = tuple[Axis, ...] | None


class Part(NamedTuple):
    """The name of the tokens start to stop of an axis; all parts concatenated in order are the axis again."""

    of: Axis
    start: int
    stop: int


def of_batch(shape: Sequence[int], weights: Sequence[int]) -> Labels:
    """Labels of a batch leaf: its leading axes are tokens when they match the weights'; None when they do not."""
    if tuple(shape[: len(weights)]) != tuple(weights):
        return None
    return (*(((i, 1, n),) for i, n in enumerate(weights)), *((),) * (len(shape) - len(weights)))


def meet(a: Labels, b: Labels) -> Labels:
    """What two alternatives for one value agree on."""
    if a is None or b is None:
        return b if a is None else a
    return tuple(x if x == y else () for x, y in zip(a, b, strict=True))


def scanned(inputs: Sequence[Labels]) -> Axis:
    """The tokens a scan goes over: the leading label its scanned inputs agree on."""
    leading = {x[0] for x in inputs if x and x[0]}
    return leading.pop() if len(leading) == 1 else ()


def propagate(eqn: Any, inputs: Sequence[Labels]) -> list[Labels]:
    """Labels of the outputs of an equation, from those of its inputs."""
    if all(x is None for x in inputs):
        return [None] * len(eqn.outvars)
    rule = RULES.get(eqn.primitive.name, _elementwise)
    return [rule(eqn, inputs, i) for i in range(len(eqn.outvars))]


def _out(eqn: Any, i: int) -> tuple[int, ...]:
    return tuple(getattr(eqn.outvars[i].aval, "shape", ()))


def _in(eqn: Any, i: int) -> tuple[int, ...]:
    return tuple(getattr(eqn.invars[i].aval, "shape", ()))


def _lost(eqn: Any, i: int) -> Labels:
    return ((),) * len(_out(eqn, i))


def _both(a: Labels, b: Labels) -> Labels:
    """Row t of a sum holds token t when either term does; terms that disagree lose the axis."""
    if a is None or b is None:
        return b if a is None else a
    return tuple((x or y) if not (x and y) or x == y else () for x, y in zip(a, b, strict=True))


def _elementwise(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    """An axis of length 1 is repeated: what it holds belongs to no row."""
    shape = _out(eqn, i)
    labels: Labels = None
    for k, x in enumerate(inputs):
        source = _in(eqn, k)
        if x is None or not source:
            continue
        if len(source) != len(shape) or any(n not in (1, m) for n, m in zip(source, shape, strict=True)):
            return _lost(eqn, i)
        labels = _both(labels, tuple(a if n == m else () for a, n, m in zip(x, source, shape, strict=True)))
    return _lost(eqn, i) if labels is None else labels


def _without(params: str) -> Any:
    """An elementwise rule that loses the axes named by a parameter."""

    def rule(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
        kept = _elementwise(eqn, inputs, i) or ()
        named = eqn.params[params]
        gone = [d % len(kept) for d in (named if isinstance(named, tuple | list) else (named,))]
        return tuple(() if d in gone else axis for d, axis in enumerate(kept))

    return rule


def _none(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    return _lost(eqn, i)


def _reduce(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    x = inputs[0]
    return None if x is None else tuple(a for d, a in enumerate(x) if d not in eqn.params["axes"])


def _transpose(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    x = inputs[0]
    return None if x is None else tuple(x[d] for d in eqn.params["permutation"])


def _broadcast(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    x, shape, source = inputs[0], _out(eqn, i), _in(eqn, 0)
    if x is None:
        return None
    out: list[Axis] = [()] * len(shape)
    for d, target in enumerate(eqn.params["broadcast_dimensions"]):
        if source[d] == shape[target]:
            out[target] = x[d]
    return tuple(out)


def _reshape(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    """Axes without a label become digits of their own (negative names), so that merging and splitting stays exact."""
    x, source = inputs[0], _in(eqn, 0)
    if x is None:
        return None
    axes = [a or ((-1 - d, 1, n),) for d, (a, n) in enumerate(zip(x, source, strict=True))]
    moved = atoms.reshape(axes, _out(eqn, i))
    if moved is None:
        return _lost(eqn, i)
    return tuple(() if all(isinstance(a, int) and a < 0 for a, _, _ in axis) else axis for axis in moved)


def _dot(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left: list[Axis] = list(inputs[0] or [()] * len(_in(eqn, 0)))
    right: list[Axis] = list(inputs[1] or [()] * len(_in(eqn, 1)))
    batch: list[Axis] = [left[a] or right[b] for a, b in zip(lb, rb, strict=True)]
    free = [a for d, a in enumerate(left) if d not in (*lc, *lb)] + [
        a for d, a in enumerate(right) if d not in (*rc, *rb)
    ]
    return tuple(batch + free)


def _ragged(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    left, shape = inputs[0], _out(eqn, i)
    return (left[0], *((),) * (len(shape) - 1)) if left and len(shape) == 2 else _lost(eqn, i)


def _gather(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    operand, ids = inputs[0], inputs[1]
    d, sizes, source, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], _in(eqn, 0), _out(eqn, i)
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    slices = [a for a in range(len(source)) if a not in gone]
    from_ids = iter(ids[:-1] if ids is not None else ((),) * (len(shape) - len(d.offset_dims)))
    out: list[Axis] = []
    offset = iter(slices)
    for axis in range(len(shape)):
        if axis in d.offset_dims:
            a = next(offset)
            out.append(operand[a] if operand is not None and sizes[a] == source[a] else ())
        else:
            out.append(next(from_ids))
    return tuple(out)


def _same_size(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    """Slices, pads and concatenations: an axis keeps its label where its length does not change."""
    shape = _out(eqn, i)
    labels: Labels = None
    for k, x in enumerate(inputs):
        if x is not None and len(x) == len(shape):
            source = _in(eqn, k)
            labels = _both(labels, tuple(a if n == m else () for a, n, m in zip(x, source, shape, strict=True)))
    return _lost(eqn, i) if labels is None else labels


def _slice(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    x, source, shape = inputs[0], _in(eqn, 0), _out(eqn, i)
    if x is None or any(step != 1 for step in eqn.params["strides"] or ()):
        return _same_size(eqn, inputs, i)
    ends = zip(x, source, shape, eqn.params["start_indices"], strict=True)
    return tuple(a if n == m or not a else ((Part(a, start, start + m), 1, m),) for a, n, m, start in ends)


def _concatenate(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    """Along its axis the parts of one axis, in order and complete, are that axis; elsewhere as for any row."""
    d = eqn.params["dimension"]
    labels = list(_same_size(eqn, inputs, i) or ())
    names = [x[d][0][0] for x in inputs if x and len(x[d]) == 1]
    parts = [name for name in names if isinstance(name, Part)]
    if len(parts) == len(inputs) and all(p.of == parts[0].of for p in parts):
        whole = parts[0].of
        if [*(p.start for p in parts), atoms.size(whole)] == [0, *(p.stop for p in parts)]:
            labels[d] = whole
    return tuple(labels)


def _conv(eqn: Any, inputs: Sequence[Labels], i: int) -> Labels:
    d, left = eqn.params["dimension_numbers"], inputs[0]
    out = [()] * len(_out(eqn, i))
    if left is not None and eqn.params["batch_group_count"] == 1:
        out[d.out_spec[0]] = left[d.lhs_spec[0]]
    return tuple(out)


RULES: dict[str, Any] = {
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot,
    "ragged_dot_general": _ragged,
    "gather": _gather,
    "conv_general_dilated": _conv,
    "slice": _slice,
    "concatenate": _concatenate,
    **dict.fromkeys(("dynamic_slice", "dynamic_update_slice", "pad", "split", "top_k"), _same_size),
    **dict.fromkeys(
        ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"],
        _reduce,
    ),
    "sort": _without("dimension"),
    "rev": _without("dimensions"),
    **dict.fromkeys(
        [
            "scatter",
            "scatter_add",
            "scatter-add",
            "scatter_mul",
            "fft",
            "cholesky",
            "triangular_solve",
            "lu",
            "qr",
            "eigh",
        ],
        _none,
    ),
    **dict.fromkeys(["pallas_call", "shard_map", "custom_linear_solve", "all_to_all", "all_gather", "ppermute"], _none),
}
