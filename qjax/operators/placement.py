"""Where quantized leaves lie on a mesh: the shardings of codes, scales and maps follow from those of the weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from qjax import dispatch
from qjax.operators.by_use import ByUse
from qjax.operators.columns import Columns
from qjax.operators.factored import Factored
from qjax.operators.latent import Latent
from qjax.operators.maps.diag import Diag
from qjax.operators.maps.shift import Shift
from qjax.operators.post import Post
from qjax.operators.pre import Pre
from qjax.operators.rows import Rows
from qjax.operators.scaled import Scaled
from qjax.operators.sparse import Sparse
from qjax.operators.stacked import Stacked
from qjax.operators.sum import Sum
from qjax.operators.view import View
from qjax.qarray import FULL, QArray

Names = tuple[Any, ...]  # one entry of a PartitionSpec for each axis


def shardings(tree: Any, like: Any) -> Any:
    """Shardings of a tree with quantized leaves, from those of the float tree it was made of.

    Args:
        tree: arrays and operators.
        like: a `NamedSharding` for each leaf as it is stored (a prefix of the tree will do), over an Auto or an
            Explicit mesh.

    Returns:
        The tree with a `NamedSharding` in place of every array: for `jax.device_put`, or `in_shardings` of `jax.jit`.

    A scale goes with its block and is repeated where one block spans all devices (a FULL block: one scale a channel, or
    one for the tensor). The outer level of a nested scale is cut where that keeps its blocks whole, and repeated where
    not. Maps that mix channels, and sparse entries, are repeated but for batch axes.

    Raises:
        ValueError: an axis would be cut inside a block, or unevenly; names the leaf, the sizes and the remedy.
        TypeError: a node without a rule (`Packed`: shard first, then prepare).

    >>> import jax, jax.numpy as jnp, qjax
    >>> mesh = jax.make_mesh((1,), ("model",))
    >>> q = {"w": qjax.quantize(jnp.ones((128, 8)), "int4_g64")}
    >>> placed = shardings(q, jax.sharding.NamedSharding(mesh, jax.P("model", None)))
    >>> placed["w"].codes.spec, placed["w"].scales[0].spec
    (P('model', None), P('model', None))
    """
    # `like` is a prefix: each of its shardings is given to every leaf below.
    full = jax.tree.map(lambda s, part: jax.tree.map(lambda _: s, part, is_leaf=dispatch.is_operator), like, tree)

    def leaf(keypath: Any, node: Any, sharding: NamedSharding) -> Any:
        path = jax.tree_util.keystr(keypath, simple=True, separator="/")
        names = (*sharding.spec, *(None,) * (len(node.shape) - len(sharding.spec)))
        return _Placement(path, sharding).of(node, names) if dispatch.is_operator(node) else sharding

    return jax.tree_util.tree_map_with_path(leaf, tree, full, is_leaf=dispatch.is_operator)


@dataclasses.dataclass(frozen=True)
class _Placement:
    path: str
    sharding: NamedSharding

    def of(self, node: Any, names: Names) -> Any:
        """The node with shardings in place of its arrays; one name an axis of the node."""
        *batch, k, n = names
        if isinstance(node, QArray):
            return self.quantized(node, names)
        if isinstance(node, jax.Array):
            return self.array(node, names)
        if isinstance(node, Sum | ByUse):
            return self.parts(node, names)
        if isinstance(node, Stacked):
            self.refuse(names[0] is None, f"its {node.shape[0]} layers differ in structure and cannot be cut apart")
            return self.parts(node, names[1:])
        if isinstance(node, Factored):
            return Factored(self.of(node.a, (*batch, k, None)), self.of(node.b, (*batch, None, n)))
        if isinstance(node, Pre):
            inside = k if node.op.shape[-2] == node.shape[-2] else None
            return Pre(self.map(node.T, (*batch, k)), self.of(node.op, (*batch, inside, n)))
        if isinstance(node, Post):
            inside = n if node.op.shape[-1] == node.shape[-1] else None
            return Post(self.of(node.op, (*batch, k, inside)), self.map(node.T, (*batch, n)))
        if isinstance(node, Columns):
            self.refuse(k is None, "Columns permutes and cuts its input channels; shard the outputs")
            order: Any = None if node.order is None else self.array(node.order, (*batch, None))
            return Columns(tuple(self.of(op, names) for op in node.ops), order)
        if isinstance(node, Rows):
            self.refuse(n is None, "Rows cuts its outputs at fixed places; shard the inputs")
            return self.parts(node, names)
        if isinstance(node, Latent):
            return dataclasses.replace(node, w=self.array(node.w, names), theta=self.repeated(node.theta, batch))
        if isinstance(node, Scaled):
            factors: Any = self.array(node.a, (*batch, k, None)), self.array(node.b, (*batch, None, n))
            return Scaled(self.of(node.op, names), *factors)
        if isinstance(node, Sparse):
            return self.repeated(node, batch)
        if isinstance(node, View):
            return dataclasses.replace(node, op=self.of(node.op, self.behind(node, names)))
        raise TypeError(f"{self.path}: {type(node).__name__} has no rule of sharding; shard first, then prepare")

    def quantized(self, q: QArray, names: Names, nested: bool = False) -> QArray:
        first = len(names) - len(q.meta.block)
        kept = list(names)
        for axis, (size, name) in enumerate(zip(q.codes.shape, names, strict=True)):
            block = 1 if axis < first else q.meta.block[axis - first]
            shard = size // self.devices(name)
            if name is None or block == FULL or shard % block == 0:
                continue
            if not nested:
                raise ValueError(
                    f"{self.path}: axis {axis} of {size} over {self.devices(name)} devices gives each {shard}, which "
                    f"cuts blocks of {block}; shard another axis, over fewer devices, or quantize in smaller blocks"
                )
            kept[axis] = None
        names = tuple(kept)

        def child(c: Any) -> Any:
            if not isinstance(c, QArray):
                return self.array(c, names)
            own = tuple(None if size == 1 else name for name, size in zip(names, c.codes.shape, strict=True))
            return self.quantized(c, own, nested=True)

        placed: dict[str, Any] = {
            "codes": self.array(q.codes, names),
            "scales": tuple(map(child, q.scales)),
            "offset": None if q.offset is None else child(q.offset),
            "table": None if q.table is None else self.array(q.table, (*names, None)),
        }
        return dataclasses.replace(q, **placed)

    def map(self, T: Any, names: Names) -> Any:
        """A map of channels: one number a channel goes with it, everything else is repeated."""
        if isinstance(T, Diag | Shift):
            return jax.tree.map(lambda a: self.array(a, names), T)
        return self.repeated(T, names[:-1])

    def parts(self, node: Any, names: Names) -> Any:
        fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
        each = {
            key: tuple(self.of(op, names) for op in value) if isinstance(value, tuple) else self.of(value, names)
            for key, value in fields.items()
        }
        return dataclasses.replace(node, **each)

    def repeated(self, node: Any, batch: Sequence[Any]) -> Any:
        def place(a: Any) -> NamedSharding:
            return self.array(a, (*batch, *(None,) * (a.ndim - len(batch))))

        return jax.tree.map(place, node)

    def array(self, a: Any, names: Names) -> NamedSharding:
        """An array's own sharding: axes of size 1 are shared, the others are cut evenly."""
        spec = [None if size == 1 else name for size, name in zip(a.shape, names, strict=True)]
        for axis, (size, name) in enumerate(zip(a.shape, spec, strict=True)):
            n = self.devices(name)
            self.refuse(size % n == 0, f"axis {axis} of {size} cannot be cut evenly over {n} devices")
        return NamedSharding(self.sharding.mesh, PartitionSpec(*spec))

    def behind(self, view: View, names: Names) -> Names:
        """The names of the operator's own axes, from those of its storage."""
        own: list[Any] = [None] * view.op.ndim
        for axis, name in zip(view.axes, names, strict=True):
            if name is None:
                continue
            at, stride, size = axis[0]
            whole = stride * size == view.op.shape[at] and size % self.devices(name) == 0 and own[at] is None
            self.refuse(whole, f"as a matrix, a storage axis over {name!r} does not cut one axis in front")
            own[at] = name
        return tuple(own)

    def devices(self, name: Any) -> int:
        names = () if name is None else name if isinstance(name, tuple) else (name,)
        return math.prod(self.sharding.mesh.shape[n] for n in names)

    def refuse(self, fine: bool, reason: str) -> None:
        if not fine:
            raise ValueError(f"{self.path}: {reason}")
