"""TokenAdaptive(narrow, wide, crest): each token rounded to one of two formats, by how far its largest stands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.nodes import node
from qjax.operators.operator import Map, NotAffine
from qjax.quantization import fake_quantize


@node
@dataclass(frozen=True, eq=False)
class TokenAdaptive(Map):
    """Tokens whose crest factor, max |x| over the rms, is at least `crest` in the `wide` format, others in `narrow`.

    A token's width depends on that token alone, so decoding one by one and a whole prompt agree. No matrix describes
    it.

    >>> x = jnp.array([[1.0, -1.0, 0.9, 1.0], [0.1, 0.0, 9.0, 0.2]])
    >>> rounded = TokenAdaptive.of("int2_narrow", "int8", 1.9).apply(x)
    >>> [round(float(abs(row).max()), 3) for row in rounded - x]
    [0.1, 0.029]
    """

    narrow: Format = field(metadata={"static": True})
    wide: Format = field(metadata={"static": True})
    crest: float = field(metadata={"static": True})
    nonlinear: ClassVar[bool] = True

    @classmethod
    def of(cls, narrow: Format | str, wide: Format | str, crest: float) -> TokenAdaptive:
        """ValueError for a format whose scales span several tokens, or a crest factor below 1, which no token has."""
        formats = as_format(narrow), as_format(wide)
        if spanning := [f.name for f in formats if f.tensor or f.across != 1]:
            raise ValueError(
                f"TokenAdaptive: scales of {spanning[0]} span tokens; give formats as int4, int8_g64, mxfp4"
            )
        if crest < 1:
            raise ValueError(f"TokenAdaptive: crest={crest:g}, but every token has at least 1")
        return cls(*formats, crest)

    def apply(self, x: jax.Array) -> jax.Array:
        size = jnp.abs(x.astype(jnp.float32))
        top = jnp.max(size, axis=-1, keepdims=True)
        power = jnp.mean((size / jnp.where(top > 0, top, jnp.ones_like(top))) ** 2, axis=-1, keepdims=True)
        wide = power * self.crest**2 <= 1
        flat = x.reshape(-1, x.shape[-1])
        fine, coarse = (fake_quantize(flat, f, axis=-1).reshape(x.shape) for f in (self.wide, self.narrow))
        return jnp.where(jnp.broadcast_to(wide, x.shape), fine, coarse)

    def transpose(self) -> Map:
        raise NotAffine(f"TokenAdaptive({self.narrow.name}, {self.wide.name}) rounds activations; it has no transpose")
