"""Hadamard(signs; size): the fast orthogonal mixing of blocks of channels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from qjax.nodes import node
from qjax.operators.maps.kronecker import kronecker_product
from qjax.operators.operator import Map, batched


@node
@dataclass(frozen=True, eq=False)
class Hadamard(Map):
    """(x * signs) @ H / sqrt(size) on consecutive blocks of `size` channels; `backwards` is its inverse, signs last.

    signs [batch..., K] int8 or None. Signs drawn from a key can be drawn again and count no bits (`learned=False`).
    Sizes: m * 2^k for every m = 1, 12, 20, 28, 36, 44, ... that Paley's two constructions reach (`hadamard_matrix`).
    With `sylvester` the 2^k is Sylvester's matrix, the Walsh-Hadamard transform of QuaRot's kernels, which TPUs take in
    front of a product (`qjax.integer.dynamic_matmul`); without, it is cut into factors that may be Paley's as well.
    """

    signs: jax.Array | None
    size: int = field(metadata={"static": True})
    backwards: bool = field(default=False, metadata={"static": True})
    learned: bool = field(default=False, metadata={"static": True})
    sylvester: bool = field(default=False, metadata={"static": True})

    @classmethod
    def random(cls, key: jax.Array, features: int, size: int | None = None, sylvester: bool = False) -> Hadamard:
        """Random signs on `features` channels, mixed in blocks of `size` (default: all of them)."""
        signs = jax.random.rademacher(key, (features,), jnp.int8)
        return cls(signs, features if size is None else size, sylvester=sylvester)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return () if self.signs is None else self.signs.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        factors = hadamard_factors(self.size, sylvester=self.sylvester)
        if self.backwards:
            return self._flip(kronecker_product(x, [f.T for f in factors]))
        return kronecker_product(self._flip(x), factors)

    def transpose(self) -> Hadamard:
        return replace(self, backwards=not self.backwards)

    def inverse(self) -> Hadamard:
        return self.transpose()

    def bits(self) -> float:
        return float(self.signs.size) if self.learned and self.signs is not None else 0.0

    def _flip(self, x: jax.Array) -> jax.Array:
        if self.signs is None:
            return x
        flip = batched(lambda x, s: x * jnp.broadcast_to(s.astype(x.dtype), x.shape), self.signs.ndim - 1)
        return flip(x, self.signs)


@functools.cache
def hadamard_factors(size: int, widest: int = 64, sylvester: bool = False) -> tuple[np.ndarray, ...]:
    """Orthonormal factors whose Kronecker product is the Hadamard matrix of this size, each about `widest` at most.

    The first is Paley's for a size that is no power of two; the others are Sylvester's if asked for.
    """
    odd, powers = size, 1
    while odd % 2 == 0:
        odd, powers = odd // 2, powers * 2
    base = next((m for m in (odd, 2 * odd, 4 * odd) if size % m == 0 and paley(m) is not None), None)
    if base is None:
        raise ValueError(
            f"no Hadamard matrix of size {size} is known here; sizes are m * 2^k, m = 1, 12, 20, 28, 36, 44, ..."
        )
    sizes = [base] if base > 1 else []
    rest = size // base
    while rest > 1:
        sizes.append(min(rest, widest))
        rest //= sizes[-1]
    return tuple(sylvester_matrix(n) if sylvester and n != base else hadamard_matrix(n) for n in sizes or [1])


@functools.cache
def hadamard_matrix(size: int) -> np.ndarray:
    """An orthonormal float32 Hadamard matrix [size, size], a Paley matrix doubled; ValueError where none is known."""
    h, n = None, size
    while h is None:
        h = paley(n)
        if h is None and n % 2:
            raise ValueError(f"no Hadamard matrix of size {size} is known here")
        n = n // 2 if h is None else n
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(size)).astype(np.float32)


@functools.cache
def sylvester_matrix(size: int) -> np.ndarray:
    """The orthonormal float32 matrix [size, size] of J. Sylvester (1867), [[1, 1], [1, -1]] doubled; a power of two."""
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return (h / np.sqrt(size)).astype(np.float32)


def paley(n: int) -> np.ndarray | None:
    """A Hadamard matrix with entries +-1 after R. Paley (1933), or None.

    Construction I has n - 1 prime, 3 mod 4; construction II n / 2 - 1 prime, 1 mod 4.
    None where neither applies; n = 1 is the trivial one.
    """
    if n == 1:
        return np.ones((1, 1))
    if n % 4 == 0 and is_prime(n - 1):
        return np.eye(n) + skew(n - 1)
    if n % 4 == 0 and is_prime(n // 2 - 1) and (n // 2 - 1) % 4 == 1:
        conference = skew(n // 2 - 1, symmetric=True)
        return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(n // 2), [[1, -1], [-1, -1]])
    return None


def skew(q: int, symmetric: bool = False) -> np.ndarray:
    """The bordered Jacobsthal matrix [q + 1, q + 1] of the prime q: chi(i - j) inside, ones on the border."""
    squares = {i * i % q for i in range(1, q)}
    chi = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
    inside = chi[(np.arange(q)[:, None] - np.arange(q)[None, :]) % q]
    matrix = np.zeros((q + 1, q + 1))
    matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, 1 if symmetric else -1, inside
    return matrix


def is_prime(n: int) -> bool:
    """Whether n is prime."""
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
