"""Any function as a sequence of segments, one for each group of parameters, so that a method may walk through it.

>>> import jax, jax.numpy as jnp
>>> def fn(p, x):
...     for i in range(2):
...         x = jnp.tanh(x @ p["layers"][i])
...     return x @ p["head"]
>>> p = {"layers": [jnp.eye(3), jnp.eye(3)], "head": jnp.ones((3, 2))}
>>> parts = stages(fn, p, jnp.ones((4, 3)), by="layers/*")
>>> [s.name for s in parts], parts[1].fn is parts[2].fn
(['prologue', 'layers/0', 'layers/1', 'epilogue'], True)
>>> bool((parts(p, jnp.ones((4, 3))) == fn(p, jnp.ones((4, 3)))).all())
True
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.trace import versions
from qjax.trace.cuts import Cut, cut
from qjax.trace.flat import CannotCut, Flat, LeafKey, Node, flatten
from qjax.trace.paths import is_leaf, path_str
from qjax.trace.signature import Signer

__all__ = ["CannotCut", "Segment", "Segments", "stages"]

By = str | Sequence[str] | Callable[[str], "str | None"]
Carry = tuple[Any, ...]


@dataclass(frozen=True)
class Segment:
    """A part of a function: `fn(leaves, carry) -> carry`, plain, traceable, not compiled.

    `paths` names what `leaves` holds: (path, None) a whole leaf of the tree, (path, i) entry i of its leading axis.
    Segments that compute the same share one `fn` object, so `jax.jit(segment.fn)` compiles once for all of them.
    """

    name: str  # "prologue", the group ("layers/3"), or "epilogue"
    kind: str  # "prologue", "group" or "epilogue"
    paths: tuple[LeafKey, ...]
    own: tuple[LeafKey, ...]  # those of the group itself, not shared from elsewhere
    fn: Callable[[tuple[Any, ...], Carry], Carry]
    carry_in: tuple[jax.ShapeDtypeStruct, ...]
    carry_out: tuple[jax.ShapeDtypeStruct, ...]

    def leaves(self, params: Any) -> tuple[Any, ...]:
        """What `fn` takes, out of a parameter tree; its leaves may be operators. A KeyError names a missing path."""
        found = {path_str(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)}
        return tuple(_entry(found[path], i) for path, i in self.paths)


@dataclass(frozen=True)
class Segments(Sequence[Segment]):
    """The segments of one function: `begin`, every `fn` in turn, `finish`. Calling it runs them all."""

    segments: tuple[Segment, ...]
    begin: Callable[[Any], Carry]
    finish: Callable[[Carry], Any]
    unused: tuple[str, ...]  # groups that `by` selects and fn never reads

    @overload
    def __getitem__(self, i: int) -> Segment: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Segment]: ...
    def __getitem__(self, i: int | slice) -> Segment | Sequence[Segment]:
        return self.segments[i]

    def __len__(self) -> int:
        return len(self.segments)

    def __call__(self, params: Any, batch: Any) -> Any:
        carry = self.begin(batch)
        for segment in self.segments:
            carry = segment.fn(segment.leaves(params), carry)
        return self.finish(carry)


def stages(fn: Callable[[Any, Any], Any], params: Any, batch: Any, by: By = "layers/*") -> Segments:
    """Cut fn(params, batch) at the first use of each group of parameters. Only shapes are read; nothing is computed.

    `by` names the groups: a glob over leading path components ("layers/*": one group for each entry of `layers`;
    "params/block_*"), several of them, or path -> group | None. Leaves that are stacked along their first axis and
    read by a scan (or as w[0], w[1], ...) give one segment for each entry; there `by` selects the leaves ("layers").
    What comes before the first group is the prologue; what reads other leaves after the last, the epilogue: leave it
    out and the head is never computed. Calls that enclose several groups (jit, remat) are entered and lose their own
    jit and remat; a block inside keeps them.

    A carry holds only activations that later segments read, and values of the batch read by two or more of them;
    what depends on neither batch nor parameters (masks, rotary tables) is computed inside each segment that reads it.

    Raises CannotCut (a ValueError) naming the equation that encloses several groups: a loop over microbatches, a cond
    or custom derivative around several layers, a layer loop that is not a scan over its leaves. ValueError if `by`
    selects no leaf.
    """
    flat_params = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)
    params_tree = jax.tree.structure(params, is_leaf=is_leaf)
    batch_leaves, batch_tree = jax.tree.flatten(batch)
    names = [path_str(path) for path, _ in flat_params]
    values = [leaf for _, leaf in flat_params] + batch_leaves
    moving = [i for i, leaf in enumerate(values) if _is_array(leaf) or i >= len(flat_params)]
    group = _grouping(by)
    if not any(group(names[i]) for i in moving if i < len(names)):
        raise ValueError(
            f"by={by!r} selects no leaf; the leaves are {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
        )
    outputs: list[Any] = []

    def flat_fn(*args: Any) -> list[Any]:
        full = list(values)
        for i, value in zip(moving, args, strict=True):
            full[i] = value
        tree = jax.tree.unflatten(params_tree, full[: len(names)])
        leaves, out_tree = jax.tree.flatten(fn(tree, jax.tree.unflatten(batch_tree, full[len(names) :])))
        outputs[:] = [out_tree, [_is_array(leaf) for leaf in leaves], leaves]
        return [jnp.asarray(leaf) for leaf, ok in zip(leaves, outputs[1], strict=True) if ok]

    specs = [_spec(values[i]) for i in moving]
    closed = versions.trace(flat_fn, *specs)
    signer = Signer()
    paths = {j: names[i] for j, i in enumerate(moving) if i < len(names)}
    flat = flatten(closed, [v.aval for v in versions.open_jaxpr(closed)[0].invars], paths, group, signer.equation)
    cuts, unused = cut(flat, lambda flat, c: _key(flat, c, signer))
    shared: dict[Hashable, Any] = {}
    segments = []
    for j, c in enumerate(cuts):
        kind = "prologue" if j == 0 else "epilogue" if j == len(cuts) - 1 else "group"
        run = shared.setdefault(c.key, None) or _function(flat, c)
        shared[c.key] = run
        own = tuple(leaf for leaf in c.leaves if kind == "group" and flat.groups.get(leaf) == c.name)
        carries = (tuple(_struct(flat, v) for v in ids) for ids in (c.carry_in, c.carry_out))
        segments.append(Segment(c.name, kind, tuple(c.leaves), own, run, *carries))
    out_tree, arrays, static = outputs
    static = [None if ok else leaf for leaf, ok in zip(static, arrays, strict=True)]

    def begin(batch: Any) -> Carry:
        leaves, tree = jax.tree.flatten(batch)
        if tree != batch_tree:
            raise ValueError(f"this batch is a {tree}, the function was cut with a {batch_tree}")
        carry = tuple(jnp.asarray(leaf) for leaf in leaves)
        for got, want in zip(carry, segments[0].carry_in, strict=True):
            if got.shape != want.shape or got.dtype != want.dtype:
                raise ValueError(
                    f"the function was cut for a batch with {want.dtype}{list(want.shape)}, this one has "
                    f"{got.dtype}{list(got.shape)}: call stages again with such a batch"
                )
        return carry

    def finish(carry: Carry) -> Any:
        rest = iter(carry)
        return jax.tree.unflatten(out_tree, [next(rest) if ok else s for ok, s in zip(arrays, static, strict=True)])

    return Segments(tuple(segments), begin, finish, tuple(unused))


def _grouping(by: By) -> Callable[[str], tuple[str, str] | None]:
    """Path -> (group, what a stack's entries are called after), from patterns over leading components."""
    if callable(by):
        return lambda path: (found, found) if (found := by(path)) is not None else None
    patterns = [p.split("/") for p in ((by,) if isinstance(by, str) else by)]

    def group(path: str) -> tuple[str, str] | None:
        parts = path.split("/")
        for pattern in patterns:
            if len(parts) >= len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern)):
                literal = next((i for i, p in enumerate(pattern) if set(p) & set("*?[")), len(pattern))
                return "/".join(parts[: len(pattern)]), "/".join(parts[:literal])
        return None

    return group


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _spec(x: Any) -> Any:
    return jax.ShapeDtypeStruct(tuple(x.shape), jnp.dtype(x.dtype)) if dispatch.is_operator(x) else x


def _entry(leaf: Any, i: int | None) -> Any:
    if i is None:
        return leaf
    return dispatch.index(leaf, i) if dispatch.is_operator(leaf) else leaf[i]


def _struct(flat: Flat, v: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(flat.values[v].shape, flat.values[v].dtype)


def _key(flat: Flat, c: Cut, signer: Signer) -> Hashable:
    """Equal for segments that compute the same from their leaves and carry, in the same order."""
    number: dict[int, Hashable] = {v: ("carry", j) for j, v in enumerate(c.carry_in)}
    slot = {leaf: j for j, leaf in enumerate(c.leaves)}

    def name(v: int) -> Hashable:
        value = flat.values[v]
        if value.leaf is not None:
            return "leaf", slot[value.leaf], value.shape, str(value.dtype)
        if value.const is not None:
            return "const", signer.value(value.const), str(value.dtype)
        return number.setdefault(v, len(number))

    def form(v: int) -> Hashable:
        return flat.values[v].shape, str(flat.values[v].dtype)

    body = tuple((n.key, tuple(map(name, n.inputs)), tuple(map(name, n.outputs))) for n in c.nodes)
    return tuple(map(form, c.carry_in)), len(c.leaves), body, tuple(map(name, c.carry_out))


def _function(flat: Flat, c: Cut) -> Callable[[tuple[Any, ...], Carry], Carry]:
    """The segment as a function; it holds its equations and constants, not the trace of the whole."""
    nodes: list[Node] = c.nodes
    slot = {leaf: j for j, leaf in enumerate(c.leaves)}
    read = {v for n in nodes for v in n.inputs} | set(c.carry_out)
    fixed = {v: flat.values[v].const for v in read if flat.values[v].const is not None}
    placed = {v: slot[leaf] for v in read if (leaf := flat.values[v].leaf) is not None}
    arrive, leave = tuple(c.carry_in), tuple(c.carry_out)
    last: dict[int, int] = {v: j for j, n in enumerate(nodes) for v in n.inputs}
    for v in leave:
        last[v] = len(nodes)

    def segment(leaves: tuple[Any, ...], carry: Carry) -> Carry:
        if len(leaves) != len(slot) or len(carry) != len(arrive):
            raise ValueError(
                f"this segment takes {len(slot)} leaves and {len(arrive)} carried values, "
                f"not {len(leaves)} and {len(carry)}"
            )
        env: dict[int, Any] = dict(fixed)
        env.update({v: leaves[j] for v, j in placed.items()})
        env.update(zip(arrive, carry, strict=True))
        for j, node in enumerate(nodes):
            env.update(zip(node.outputs, node.run([env[v] for v in node.inputs]), strict=True))
            for v in {*node.inputs, *node.outputs}:
                if last.get(v, j) == j:
                    env.pop(v, None)
        return tuple(jnp.asarray(env[v]) for v in leave)

    return segment
