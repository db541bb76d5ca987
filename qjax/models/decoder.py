"""One functional decoder, configured by data.

Parameters are one subtree per layer, kernels stored [in, out]:

    embed [vocab, width]; layers/<i>/attn/{q, k, v, o}; layers/<i>/ffn/{gate, up, down};
    layers/<i>/{attn_norm, ffn_norm}/scale; norm/scale; head [width, vocab] unless tied; biases as attn/q_bias.

Every layer runs through one jitted block, so an eager call compiles it once however deep the model is. Activations are
marked with `jax.ad_checkpoint.checkpoint_name` under local names (`SITES`), which a shared block can carry; the call of
the block sits in `jax.named_scope("layers/<i>")`, so a site is the scope of the call followed by the local name:
"layers/3/attn/query". Under `scan=True` the scope is "layers" and the iteration is the index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from qjax.kv.attention import MASKED, causal_parts, grouped_mix, grouped_scores, square, visible
from qjax.kv.cache import Cache
from qjax.kv.float_cache import FloatCache
from qjax.models import wiring
from qjax.models.architecture import Architecture
from qjax.trace.topology import Topology

Params = Mapping[str, Any]
FLOAT = FloatCache()

SITES = (
    "attn_norm/output",
    "attn/query",  # after RoPE
    "attn/key",  # after RoPE
    "attn/value",
    "attn/scores",  # scaled; before the mask (0 where no score is computed), but after it when they come from a cache
    "attn/probabilities",
    "attn/mixed",  # what the output projection reads
    "residual/attn",
    "ffn_norm/output",
    "ffn/product",  # silu(gate) * up, what the down projection reads
    "residual/ffn",
)


@dataclass(frozen=True)
class Decoder:
    """A Llama-family decoder as a pure function of its parameters.

    Args:
        arch: sizes and variants.
        scan: parameters hold the layers stacked (`stack_layers`) and run under `lax.scan`; results are equal.
        key_cache, value_cache: codecs of the cached keys and values, used by `decode` only.

    >>> arch = Architecture(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
    >>> model = Decoder(arch)
    >>> model(model.init(jax.random.key(0)), jnp.zeros((1, 3), jnp.int32)).shape
    (1, 3, 32)
    """

    arch: Architecture
    scan: bool = False
    key_cache: Cache = FLOAT
    value_cache: Cache = FLOAT

    def __call__(self, params: Params, tokens: Array, positions: Array | None = None) -> Array:
        """Logits of every token.

        Args:
            params: the tree described above.
            tokens: int [batch, tokens].
            positions: int32 [batch, tokens]; by default 0, 1, 2, ... A negative position marks padding.

        Returns:
            float32 [batch, tokens, vocab].

        Raises:
            ValueError: if tokens is not two-dimensional.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [batch, tokens], got shape {tokens.shape}")
        x = _embed(params["embed"], tokens)
        turns = rotations(self.arch, _in_order(tokens.shape[1]) if positions is None else positions)
        if self.scan:
            with jax.named_scope("layers"):
                x, _ = lax.scan(lambda x, p: (block(self.arch, p, x, turns, positions), None), x, params["layers"])
        else:
            for i in range(self.arch.layers):
                with jax.named_scope(f"layers/{i}"):
                    x = block(self.arch, params["layers"][str(i)], x, turns, positions)
        return _head(self.arch, params["norm"], params["embed" if self.arch.tied else "head"], x)

    @property
    def topology(self) -> Topology:
        """Which leaf feeds which: what folding an equivalence needs."""
        return wiring.topology(self.arch, self.scan)

    def init(self, key: Array) -> dict[str, Any]:
        """Random float32 parameters, variance 1 / fan-in; for tests and for training from nothing."""
        shapes = self.arch.shapes
        keys = jax.random.split(key, len(shapes))
        leaves = {path: _initial(k, path, shape) for k, (path, shape) in zip(keys, shapes.items(), strict=True)}
        params = nest(leaves)
        return stack_layers(params) if self.scan else params

    def init_cache(self, batch: int, capacity: int) -> Any:
        """An empty state for `decode`: keys and values of every layer, for positions 0 to capacity - 1."""
        size = (batch, capacity, self.arch.kv_heads, self.arch.head_dim)
        layers = [(self.key_cache.init(*size), self.value_cache.init(*size)) for _ in range(self.arch.layers)]
        return jax.tree.map(lambda *a: jnp.stack(a), *layers) if self.scan else tuple(layers)

    def decode(
        self, params: Params, state: Any, tokens: Array, positions: Array, last: bool = False
    ) -> tuple[Array, Any]:
        """Logits of the next tokens given what the cache holds, and the cache with these tokens appended.

        Prefill and decoding are the same call: n tokens at once equal n calls with one.

        Args:
            params: the tree described above.
            state: from `init_cache` or an earlier call.
            tokens: int [batch, tokens].
            positions: int32 [batch, tokens], below the capacity; a negative one marks padding.
            last: only the logits of the last token, which saves the head on a long prompt.

        Returns:
            float32 [batch, tokens (1 if last), vocab] and the new state.
        """
        x = _embed(params["embed"], tokens)
        turns = rotations(self.arch, positions)
        if self.scan:

            def body(x: Array, layer: tuple[Params, Any]) -> tuple[Array, Any]:
                return cached_block(self, *layer, x, turns, positions)

            with jax.named_scope("layers"):
                x, state = lax.scan(body, x, (params["layers"], state))
        else:
            states = []
            for i in range(self.arch.layers):
                with jax.named_scope(f"layers/{i}"):
                    x, new = cached_block(self, params["layers"][str(i)], state[i], x, turns, positions)
                states.append(new)
            state = tuple(states)
        x = x[:, -1:] if last else x
        return _head(self.arch, params["norm"], params["embed" if self.arch.tied else "head"], x), state


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Divide x [..., width] by its root mean square and multiply by scale [width], in float32."""
    x = x.astype(jnp.float32)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(eps))
    return y * jnp.broadcast_to(scale.astype(jnp.float32), y.shape)


def rotate(x: Array, turns: tuple[Array, Array]) -> Array:
    """RoPE on x [batch, tokens, heads, dim], channel i paired with i + dim/2 (the Hugging Face order of Llama)."""
    cos, sin = (t[:, :, None, :] for t in turns)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@partial(jax.jit, static_argnums=0)
def rotations(arch: Architecture, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines of RoPE for int32 positions [batch, tokens]: float32 [batch, tokens, head_dim / 2] each."""
    pairs = jnp.arange(0, arch.head_dim, 2, dtype=jnp.float32) / jnp.float32(arch.head_dim)
    frequencies = 1.0 / (jnp.float32(arch.theta) ** pairs)
    if arch.rope_factors is not None:
        frequencies = frequencies / jnp.asarray(arch.rope_factors, jnp.float32)
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def _in_order(tokens: int) -> Array:
    """Positions 0, 1, 2, ...: int32 [1, tokens]."""
    return jnp.arange(tokens, dtype=jnp.int32)[None]


@jax.jit
def _embed(embed: Array, tokens: Array) -> Array:
    # An id outside the vocabulary gives NaN instead of some other word's row.
    return checkpoint_name(jnp.take(embed, tokens, axis=0, mode="fill").astype(jnp.float32), "residual/embed")


@partial(jax.jit, static_argnums=0)
def _head(arch: Architecture, norm: Params, head: Array, x: Array) -> Array:
    x = checkpoint_name(rms_norm(x, norm["scale"], arch.eps), "norm/output")
    return jnp.einsum("btd,vd->btv" if arch.tied else "btd,dv->btv", x, head)


def _linear(weights: Params, name: str, x: Array) -> Array:
    y = x @ weights[name]
    bias = weights.get(f"{name}_bias")
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _layer(
    arch: Architecture,
    layer: Params,
    x: Array,
    turns: tuple[Array, Array],
    attend: Callable[[Array, Array, Array], tuple[Array, Any]],
) -> tuple[Array, Any]:
    """One layer around `attend`: (q, k, v) [batch, tokens, heads, dim] to mixed values and the cache's new state."""
    batch, tokens, _ = x.shape
    attn, ffn = layer["attn"], layer["ffn"]
    h = checkpoint_name(rms_norm(x, layer["attn_norm"]["scale"], arch.eps), "attn_norm/output")
    q = _linear(attn, "q", h).reshape(batch, tokens, arch.heads, arch.head_dim)
    k = _linear(attn, "k", h).reshape(batch, tokens, arch.kv_heads, arch.head_dim)
    v = _linear(attn, "v", h).reshape(batch, tokens, arch.kv_heads, arch.head_dim)
    q = checkpoint_name(rotate(q, turns), "attn/query")
    k = checkpoint_name(rotate(k, turns), "attn/key")
    v = checkpoint_name(v, "attn/value")
    mixed, state = attend(q, k, v)
    mixed = checkpoint_name(mixed.reshape(batch, tokens, arch.heads * arch.head_dim), "attn/mixed")
    x = checkpoint_name(x + _linear(attn, "o", mixed), "residual/attn")
    h = checkpoint_name(rms_norm(x, layer["ffn_norm"]["scale"], arch.eps), "ffn_norm/output")
    product = jax.nn.silu(_linear(ffn, "gate", h)) * _linear(ffn, "up", h)
    product = checkpoint_name(product, "ffn/product")
    return checkpoint_name(x + _linear(ffn, "down", product), "residual/ffn"), state


@partial(jax.jit, static_argnums=0)
def block(arch: Architecture, layer: Params, x: Array, turns: tuple[Array, Array], positions: Array | None) -> Array:
    """One layer on x [batch, tokens, width]; `turns` from `rotations(arch, positions)`.

    Positions None are 0, 1, 2, ...: attention then skips most of what the mask would hide.
    """
    tokens = x.shape[1]
    at = _in_order(tokens) if positions is None else positions

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        q, k, v = q * jnp.float32(arch.head_dim**-0.5), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        parts = causal_parts(tokens) if positions is None else [(0, tokens, tokens)]

        def probabilities(start: int, stop: int, slots: int) -> Array:
            own = s[:, :, start:stop, :slots]
            seen = visible(at[:, start:stop], at[:, :slots])
            return jax.nn.softmax(jnp.where(seen, own, jnp.full_like(own, MASKED)), axis=-1)

        # Sites are whole squares; where no tap sits on them, the compiler sees that only the parts are read.
        s = square([grouped_scores(q[:, start:stop], k[:, :, :slots]) for start, stop, slots in parts])
        s = checkpoint_name(s, "attn/scores")
        p = checkpoint_name(square([probabilities(*part) for part in parts]), "attn/probabilities")
        mixed = [grouped_mix(p[:, :, start:stop, :slots], v[:, :, :slots]) for start, stop, slots in parts]
        return jnp.concatenate(mixed, axis=1), None

    return _layer(arch, layer, x, turns, attend)[0]


@partial(jax.jit, static_argnums=0)
def cached_block(
    model: Decoder, layer: Params, state: Any, x: Array, turns: tuple[Array, Array], positions: Array
) -> tuple[Array, Any]:
    """One layer on x [batch, tokens, width] that appends to its cache; the output and the new state."""

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        keys = model.key_cache.append(state[0], k, positions)
        values = model.value_cache.append(state[1], v, positions)
        # The scale goes onto the query: a mask that the cache has written must stay what it is.
        s = model.key_cache.scores(keys, q * jnp.float32(model.arch.head_dim**-0.5), positions)
        p = jax.nn.softmax(checkpoint_name(s, "attn/scores"), axis=-1)
        return model.value_cache.mix(values, checkpoint_name(p, "attn/probabilities")), (keys, values)

    return _layer(model.arch, layer, x, turns, attend)


def _initial(key: Array, path: str, shape: tuple[int, ...]) -> Array:
    if path.endswith("/scale"):
        return jnp.ones(shape, jnp.float32)
    if path.endswith("_bias"):
        return jnp.zeros(shape, jnp.float32)
    fan_in = shape[1] if path == "embed" else shape[0]
    return jax.random.normal(key, shape, jnp.float32) * jnp.float32(fan_in**-0.5)


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from leaves by path.

    >>> nest({"norm/scale": 1, "layers/0/attn/q": 2})
    {'norm': {'scale': 1}, 'layers': {'0': {'attn': {'q': 2}}}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def stack_layers(params: Params) -> dict[str, Any]:
    """The same parameters with the layers stacked on a new leading axis, for `Decoder(arch, scan=True)`.

    Raises:
        ValueError: if the layers differ in structure, naming the first that does.
    """
    layers: Sequence[Any] = [params["layers"][str(i)] for i in range(len(params["layers"]))]
    for i, layer in enumerate(layers):
        if jax.tree.structure(layer) != jax.tree.structure(layers[0]):
            raise ValueError(f"layers/{i} differs in structure from layers/0; only equal layers can be stacked")
    return {**params, "layers": jax.tree.map(lambda *a: jnp.stack(a), *layers)}


def unstack_layers(params: Params) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    depth = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = {str(i): jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(depth)}
    return {**params, "layers": layers}
