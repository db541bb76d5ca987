"""The base of every operator node, and the errors its rules raise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax import accounting
from qjax.qarray import QArray


class NotAffine(TypeError):
    """The operator quantizes activations: no matrix W reproduces it."""


class NotLinear(TypeError):
    """The operator adds a bias: a matrix alone would lose it."""


class NotInvertible(TypeError):
    """The map has no inverse of its own kind."""


class Operator:
    """x [batch..., tokens..., K] -> y [batch..., tokens..., N], with `shape` = (batch..., K, N).

    Nodes are frozen dataclasses registered as pytrees; every array below a node carries the node's batch axes in front,
    so slicing, stacking, `vmap` and `scan` over layers or experts are a `tree.map`. Fields hold arrays, `QArray`s, maps
    and other operators; `children` lists them by name.
    """

    uniform: ClassVar[bool] = True  # one tree structure serves every entry of the batch axes

    if TYPE_CHECKING:  # declared, not defined: a node may hold either as a field

        @property
        def shape(self) -> tuple[int, ...]:
            """(batch..., K, N)."""
            ...

        @property
        def dtype(self) -> np.dtype:
            """Logical dtype of the matrix."""
            ...

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.shape[:-2]

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        """Take x [batch..., tokens..., K] through the operator; the result has dtype `dtype` or that of x."""
        raise NotImplementedError

    def ragged_dot(
        self, x: jax.Array, sizes: jax.Array, *, dtype: Any = None, implementation: str | None = None
    ) -> jax.Array:
        """Take runs of rows of x [tokens, K], as long as sizes [E] say, through the matrices of [E, K, N], in order.

        Raises NotAffine where an activation quantizer would be lost, NotLinear where a bias would.
        """
        assert_affine(self)
        if implementation not in (None, "dequantize"):
            raise ValueError(f"no implementation {implementation!r} for {type(self).__name__}: know ['dequantize']")
        return ragged_product(x, self.matrix(), sizes, dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        """(W [batch..., K, N], b [batch..., N] or None)."""
        raise NotImplementedError

    def rows(self, ids: jax.Array) -> jax.Array:
        """The output units named by ids: [batch..., *ids.shape, K], W.T[ids]."""
        return jnp.take(jnp.swapaxes(self.matrix(), -1, -2), ids, axis=self.ndim - 2)

    def transpose(self) -> Any:
        """The operator of W.T, [batch..., N, K]."""
        return jnp.swapaxes(self.matrix(), -1, -2)

    def matrix(self) -> jax.Array:
        """W [batch..., K, N] alone; raises NotLinear rather than drop a bias."""
        W, b = self.affine()
        if b is not None:
            raise NotLinear(f"{type(self).__name__} {self.shape} adds a bias; ask for affine(op) instead")
        return W

    def outputs(self, start: Any, size: int) -> Any:
        """The operator of W[..., start:start + size], or None where the node has no rule."""
        return None

    def index(self, i: Any) -> Any:
        """Entry i of the first batch axis."""
        return jax.tree.map(lambda leaf: entry(leaf, i), self)

    def children(self) -> dict[str, Any]:
        """Sub-operators, maps and arrays by name, in field order; entries of tuples as "ops/0"."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                found |= {f"{field.name}/{i}": v for i, v in enumerate(value) if is_child(v)}
            elif is_child(value):
                found[field.name] = value
        return found

    def bits(self) -> float:
        """Bits stored: everything in the children."""
        return sum(stored_bits(child) for child in self.children().values())


class Map:
    """A map of activations x [batch..., tokens..., K] -> [batch..., tokens..., K'], affine unless it says otherwise.

    `transpose` and `shift` together describe an affine map x @ M + c: M's transpose is a map again, c an array.
    """

    nonlinear: ClassVar[bool] = False  # True where no matrix reproduces it

    def apply(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def transpose(self) -> Map:
        """The map x' -> x' @ M.T of the linear part."""
        raise NotImplementedError

    def linear(self) -> Map | None:
        """The map x -> x @ M without the shift; None where M is the identity."""
        return self

    def shift(self) -> jax.Array | None:
        """C [batch..., K'], or None."""
        return None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Batch axes of the parameters; () where one map serves the whole batch."""
        return ()

    def inverse(self) -> Map:
        raise NotInvertible(f"{type(self).__name__} has no inverse")

    def features(self, outputs: int) -> int:
        """K, given K'."""
        return outputs

    def results(self, inputs: int) -> int:
        """K', given K."""
        return inputs

    def children(self) -> dict[str, Any]:
        return Operator.children(self)  # pyright: ignore[reportArgumentType]

    def bits(self) -> float:
        return Operator.bits(self)  # pyright: ignore[reportArgumentType]

    def matrix_shift(self, features: int, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array | None]:
        """(M [batch..., K, K'], c [batch..., K'] or None) on `features` = K inputs."""
        outputs = self.results(features)
        eye = jnp.broadcast_to(jnp.eye(outputs, dtype=dtype), (*self.batch_shape, outputs, outputs))
        M = self.transpose().apply(eye)
        return jnp.swapaxes(M, -1, -2), self.shift()


def is_operator(x: Any) -> bool:
    """Whether x is an operator node or a QArray (a plain array is not)."""
    return isinstance(x, (Operator, QArray))


def is_child(value: Any) -> bool:
    """Whether a field holds part of the operator (shapes stand in for arrays under `eval_shape`)."""
    return isinstance(value, (Operator, QArray, Map, jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def walk(op: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, node) of op and everything below it, parents first."""
    yield path, op
    if isinstance(op, (Operator, Map)):
        for name, child in op.children().items():
            yield from walk(child, f"{path}/{name}" if path else name)


def stored_bits(child: Any) -> float:
    """Bits of an operator, a map, a QArray or a plain array as stored."""
    return child.bits() if isinstance(child, (Operator, Map)) else accounting.bits(child)


def entry(leaf: jax.Array, i: Any) -> jax.Array:
    """Entry i of the leading axis; an axis of size 1 is shared by all entries."""
    if leaf.shape[0] == 1:
        return leaf[0]
    if isinstance(i, (int, np.integer)):
        return leaf[i]
    return lax.dynamic_index_in_dim(leaf, i, axis=0, keepdims=False)


def batched(f: Any, batch: int) -> Any:
    """F mapped over `batch` leading axes of all its arguments."""
    for _ in range(batch):
        f = jax.vmap(f)
    return f


def assert_affine(op: Any) -> None:
    """Raise NotAffine with the path of the first activation quantizer inside op."""
    for path, node in walk(op):
        if isinstance(node, Map) and node.nonlinear:
            raise NotAffine(
                f"{type(op).__name__} {op.shape}: the {type(node).__name__} at {path!r} quantizes activations"
            )


def product(x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
    """The product x [batch..., tokens..., K] @ w [batch..., K, N] in the dtype of x, sums in float32 at least."""
    batch = w.ndim - 2
    lead = tuple(range(batch))
    y = lax.dot_general(
        x, w.astype(x.dtype), (((x.ndim - 1,), (batch,)), (lead, lead)), preferred_element_type=wide(x.dtype)
    )
    return y.astype(x.dtype if dtype is None else dtype)


def ragged_product(x: jax.Array, w: jax.Array, sizes: jax.Array, dtype: Any = None) -> jax.Array:
    """`product` of runs of rows of x [tokens, K] with the matrices of w [E, K, N], one after another."""
    y = lax.ragged_dot(x, w.astype(x.dtype), sizes, preferred_element_type=wide(x.dtype))
    return y.astype(x.dtype if dtype is None else dtype)


def compose(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product a [batch..., M, K] @ b [batch..., K, N] at full precision, in the wider of the two dtypes."""
    width = a.dtype if a.dtype == b.dtype else wide(a.dtype, b.dtype)
    lead = tuple(range(a.ndim - 2))
    dims = (((a.ndim - 1,), (b.ndim - 2,)), (lead, lead))
    y = lax.dot_general(
        a.astype(width),
        b.astype(width),
        dims,
        precision="highest",
        preferred_element_type=wide(width),
    )
    return y.astype(width)


def wide(*dtypes: Any) -> Any:
    """What sums of these float types are taken in: float64 if one of them is, else float32."""
    return jnp.float64 if any(np.dtype(d) == np.float64 for d in dtypes) else jnp.float32
