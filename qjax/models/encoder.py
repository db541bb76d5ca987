"""Encoders: the layers of `qjax.models.decoder` with every token seeing every other, and what stands around them.

The parameters are a decoder's tree (layers/<i>/attn, /ffn and their norms) without its head, and by the architecture

    embed [vocab, width], or patches [channels * height * width of a patch, width] and first [1, width];
    positions [context, width]; types [types, width]; embed_norm where the stream is normalized, norm elsewhere;
    head [width, classes], behind pooler [width, width] or not; or transform [width, width], transform_norm and
    words_bias [vocab] for the logits of words, whose matrix is embed. Biases as head_bias.

BERT (Devlin et al. 2018, arXiv:1810.04805) has words with types, normalized sums and a pooler. ViT (Dosovitskiy et al.
2020, arXiv:2010.11929) has patches and norms in front, its convolution written as the product with flat patches that it
is, so that a solver sees a matrix. Sites are the decoder's; with "residual/embed" behind the norm, "norm/output" where
there is a last one, and "transform/output" and "pooler/output", what those heads' last matrices read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qjax.models import wiring
from qjax.models.architecture import Architecture
from qjax.models.decoder import initial, stack_layers, through_layers
from qjax.models.encoding import Patches
from qjax.models.feed_forward import ACTIVATIONS, linear
from qjax.models.norms import normed
from qjax.trace.topology import Topology

Params = Mapping[str, Any]
# What stands in front of the layers, and behind them.
FRONT = ("embed", "patches", "patches_bias", "first", "positions", "types", "embed_norm")
BEHIND = ("transform", "transform_bias", "transform_norm", "embed", "words_bias")
BEHIND += ("pooler", "pooler_bias", "head", "head_bias")


@dataclass(frozen=True)
class Encoder:
    """An encoder as a pure function of its parameters.

    Args:
        arch: sizes and variants, with an `encoding`.
        scan: parameters hold the layers stacked (`stack_layers`) and run under `lax.scan`; results are equal.

    Raises:
        ValueError: the architecture is a decoder's.

    >>> from qjax.models.encoding import Encoding
    >>> sizes = dict(vocab=32, width=8, layers=2, heads=2, kv_heads=2, head_dim=4, ffn=16)
    >>> model = Encoder(Architecture(**sizes, encoding=Encoding(head="first", classes=3)))
    >>> model(model.init(jax.random.key(0)), jnp.zeros((1, 5), jnp.int32)).shape
    (1, 3)
    """

    arch: Architecture
    scan: bool = False

    def __post_init__(self) -> None:
        if self.arch.encoding is None:
            raise ValueError("this architecture has no encoding, which makes it a decoder's; use qjax.models.Decoder")

    def __call__(
        self, params: Params, inputs: Array, positions: Array | None = None, types: Array | None = None
    ) -> Array:
        """What the head makes of the states.

        Args:
            params: the tree described above.
            inputs: int [batch, tokens]; pictures are floats [batch, channels, height, width].
            positions: int32 [batch, tokens], by default 0, 1, 2, ...; a negative one marks padding, which no token
                sees. Pictures have none.
            types: int [batch, tokens], by default 0, for an architecture with types.

        Returns:
            float32, by `arch.encoding.head`: [batch, tokens, width] for "states", [batch, tokens, vocab] for "words",
            [batch, tokens, classes] for "each", [batch, classes] for "first" and "pooled". Tokens of a picture are its
            first one and its patches.

        Raises:
            ValueError: inputs of another shape, positions of a picture, types for an architecture without.
        """
        behind = {name: params[name] for name in BEHIND if name in params}
        return _head(self.arch, behind, self.states(params, inputs, positions, types))

    def states(
        self, params: Params, inputs: Array, positions: Array | None = None, types: Array | None = None
    ) -> Array:
        """The last states of all tokens, float32 [batch, tokens, width]; arguments are those of a call."""
        arch = self.arch
        patches = arch.encoding.patches if arch.encoding is not None else None
        _check(arch, patches, inputs, positions, types)
        front = {name: params[name] for name in FRONT if name in params}
        if patches is not None:
            x = _pictures(arch, patches, front, inputs)
        else:
            x = _words(arch, front, inputs, positions, types)
        x = through_layers(arch, params["layers"], x, positions, self.scan)
        return x if arch.placement == "sum" else _normed(arch, params["norm"], x)

    @property
    def topology(self) -> Topology:
        """Which leaf feeds which: what folding an equivalence needs."""
        return wiring.topology(self.arch, self.scan)

    def init(self, key: Array) -> dict[str, Any]:
        """Random float32 parameters, variance 1 / fan-in; for tests and for training from nothing."""
        params = initial(self.arch, key)
        return stack_layers(params) if self.scan else params


def _check(
    arch: Architecture, patches: Patches | None, inputs: Array, positions: Array | None, types: Array | None
) -> None:
    if patches is None and inputs.ndim != 2:
        raise ValueError(f"tokens must be [batch, tokens], got shape {inputs.shape}")
    if patches is not None and inputs.shape[1:] != (patches.channels, *patches.image):
        raise ValueError(
            f"pictures must be [batch, channels, height, width] of {(patches.channels, *patches.image)}, got shape "
            f"{inputs.shape}"
        )
    if patches is not None and positions is not None:
        raise ValueError("positions are for words; a picture's patches have their own")
    if types is not None and (arch.encoding is None or not arch.encoding.types):
        raise ValueError("types are given, and the architecture has none; leave them out or set encoding.types")


@partial(jax.jit, static_argnums=0)
def _words(arch: Architecture, params: Params, tokens: Array, positions: Array | None, types: Array | None) -> Array:
    # An id outside a table gives NaN instead of some other row.
    def rows(name: str, ids: Array) -> Array:
        return jnp.take(params[name], ids, axis=0, mode="fill").astype(jnp.float32)

    x = rows("embed", tokens)
    if arch.embed_scale != 1:
        x = x * jnp.float32(arch.embed_scale)
    if arch.learned_positions:
        at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] if positions is None else jnp.maximum(positions, 0)
        x = x + jnp.broadcast_to(rows("positions", at), x.shape)
    if arch.encoding is not None and arch.encoding.types:
        x = x + rows("types", jnp.zeros_like(tokens) if types is None else types)
    return _stream(arch, params, x)


@partial(jax.jit, static_argnums=(0, 1))
def _pictures(arch: Architecture, patches: Patches, params: Params, pictures: Array) -> Array:
    batch, (height, width) = pictures.shape[0], patches.patch
    rows, columns = patches.image[0] // height, patches.image[1] // width
    cut = pictures.astype(jnp.float32).reshape(batch, patches.channels, rows, height, columns, width)
    flat = cut.transpose(0, 2, 4, 1, 3, 5).reshape(batch, patches.count, patches.numbers)
    first = jnp.broadcast_to(params["first"].astype(jnp.float32)[None], (batch, 1, arch.width))
    x = jnp.concatenate([first, linear(params, "patches", flat)], axis=1)
    return _stream(arch, params, x + jnp.broadcast_to(params["positions"].astype(jnp.float32), x.shape))


def _stream(arch: Architecture, params: Params, x: Array) -> Array:
    return checkpoint_name(normed(arch, params["embed_norm"], x) if arch.placement == "sum" else x, "residual/embed")


@partial(jax.jit, static_argnums=0)
def _normed(arch: Architecture, norm: Params, x: Array) -> Array:
    return checkpoint_name(normed(arch, norm, x), "norm/output")


@partial(jax.jit, static_argnums=0)
def _head(arch: Architecture, params: Params, x: Array) -> Array:
    """The head's output from the states x [batch, tokens, width]."""
    head = "states" if arch.encoding is None else arch.encoding.head
    if head == "states":
        return x
    if head == "words":
        h = normed(arch, params["transform_norm"], ACTIVATIONS[arch.activation](linear(params, "transform", x)))
        logits = jnp.einsum("btd,vd->btv", checkpoint_name(h, "transform/output"), params["embed"])
        return logits + jnp.broadcast_to(params["words_bias"], logits.shape)
    if head == "pooled":
        x = checkpoint_name(jnp.tanh(linear(params, "pooler", x[:, 0])), "pooler/output")
    return linear(params, "head", x[:, 0] if head == "first" else x)
