"""One functional decoder, configured by data.

Parameters are one subtree per layer, kernels stored [in, out]:

    embed [vocab, width]; layers/<i>/attn/{q, k, v, o}; layers/<i>/ffn/{gate, up, down};
    layers/<i>/{attn_norm, ffn_norm}/scale; norm/scale; head [width, vocab] unless tied; biases as attn/q_bias.

By the architecture also positions [context, width]; attn/{q_norm, k_norm}; {attn_post_norm, ffn_post_norm}, whose sites
are called like the others; a norm's bias beside its scale; no ffn/gate; and in layers with experts what
`qjax.models.experts` says of ffn and its sites. Where a method put them, also attn/{prefix_key, prefix_value}
[slots, kv_heads, head_dim], see `qjax.models.prefix`.

Every layer runs through one jitted block, so an eager call compiles it once however deep the model is: where layers
differ in window or RoPE, both are arguments of the block. Activations are
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
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from qjax.kv.attention import MASKED, causal_parts, grouped_mix, grouped_scores, square, visible
from qjax.kv.cache import Cache
from qjax.kv.float_cache import FloatCache
from qjax.models import prefix, wiring
from qjax.models.architecture import Architecture
from qjax.models.experts import mixture
from qjax.models.feed_forward import feed_forward, linear
from qjax.models.norms import normed
from qjax.models.rope import Turns, rotate, turns_by_kind, turns_of
from qjax.trace.topology import Topology

Params = Mapping[str, Any]
FLOAT = FloatCache()
# Rows that are added to the stream.
TABLES = ("embed", "positions", "types", "first")

SITES = (
    "attn_norm/output",
    "attn/query",  # after RoPE
    "attn/key",  # after RoPE
    "attn/value",
    # Scaled and capped; before the mask (0 where no score is computed), but after it when they come from a cache.
    "attn/scores",
    "attn/probabilities",
    "attn/mixed",  # what the output projection reads
    "residual/attn",
    "ffn_norm/output",
    "ffn/product",  # silu(gate) * up or its like, what the down projection reads
    "residual/ffn",
)


@dataclass(frozen=True)
class Decoder:
    """A decoder as a pure function of its parameters.

    Args:
        arch: sizes and variants.
        scan: parameters hold the layers stacked (`stack_layers`) and run under `lax.scan`; results are equal.
        key_cache, value_cache: codecs of the cached keys and values, used by `decode` only.

    Raises:
        ValueError: the architecture is an encoder's.

    >>> arch = Architecture(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
    >>> model = Decoder(arch)
    >>> model(model.init(jax.random.key(0)), jnp.zeros((1, 3), jnp.int32)).shape
    (1, 3, 32)
    """

    arch: Architecture
    scan: bool = False
    key_cache: Cache = FLOAT
    value_cache: Cache = FLOAT

    def __post_init__(self) -> None:
        if self.arch.encoding is not None:
            raise ValueError(f"{self.arch.encoding} makes an encoder of this architecture; use qjax.models.Encoder")

    def __call__(self, params: Params, tokens: Array, positions: Array | None = None) -> Array:
        """Logits of every token.

        Args:
            params: the tree described above.
            tokens: int [batch, tokens].
            positions: int32 [batch, tokens]; by default 0, 1, 2, ... A negative position marks padding. They count from
                the end of the prefix, if the parameters hold one.

        Returns:
            float32 [batch, tokens, vocab].

        Raises:
            ValueError: if tokens is not two-dimensional.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [batch, tokens], got shape {tokens.shape}")
        at = _in_order(tokens.shape[1]) if positions is None else positions
        x = _embed(self.arch, params, tokens, prefix.behind(at, self._prefix(params)))
        x = through_layers(self.arch, params["layers"], x, positions, self.scan)
        return _head(self.arch, params["norm"], params["embed" if self.arch.tied else "head"], x)

    @property
    def topology(self) -> Topology:
        """Which leaf feeds which: what folding an equivalence needs."""
        return wiring.topology(self.arch, self.scan)

    def init(self, key: Array) -> dict[str, Any]:
        """Random float32 parameters, variance 1 / fan-in; for tests and for training from nothing."""
        params = initial(self.arch, key)
        return stack_layers(params) if self.scan else params

    def init_cache(self, batch: int, capacity: int) -> Any:
        """An empty state for `decode`: keys and values of every layer, for positions 0 to capacity - 1."""
        size = (batch, capacity, self.arch.kv_heads, self.arch.head_dim)
        layers = [(self.key_cache.init(*size), self.value_cache.init(*size)) for _ in range(self.arch.layers)]
        return jax.tree.map(lambda *a: jnp.stack(a), *layers) if self.scan else tuple(layers)

    def _capacity(self, state: Any) -> int:
        """How many positions a state has room for."""

        def slots(state: Any) -> Array:
            keys = jax.tree.map(lambda a: a[0], state[0]) if self.scan else state[0][0]
            return self.key_cache.decode(keys)[1]

        return jax.eval_shape(slots, state).shape[1]

    def decode(
        self, params: Params, state: Any, tokens: Array, positions: Array, last: bool = False
    ) -> tuple[Array, Any]:
        """Logits of the next tokens given what the cache holds, and the cache with these tokens appended.

        Prefill and decoding are the same call: n tokens at once equal n calls with one.

        Args:
            params: the tree described above.
            state: from `init_cache` or an earlier call.
            tokens: int [batch, tokens].
            positions: int32 [batch, tokens], below the capacity; a negative one marks padding. As in a call, they count
                from the end of a prefix, which takes no room in the state.
            last: only the logits of the last token, which saves the head on a long prompt.

        Returns:
            float32 [batch, tokens (1 if last), vocab] and the new state.
        """
        kept = self._prefix(params)
        at = prefix.behind(positions, kept)
        x, windows = _embed(self.arch, params, tokens, at), _windows(self.arch)
        context = 0 if self.arch.original_context is None else kept + self._capacity(state)
        turns = turns_by_kind(self.arch, at, context)
        if self.scan:

            def body(x: Array, layer: Any) -> tuple[Array, Any]:
                params, state, window = layer
                return cached_block(self, params, state, x, turns_of(turns, window), positions, window)

            with jax.named_scope("layers"):
                x, state = lax.scan(body, x, (params["layers"], state, windows))
        else:
            states = []
            for i in range(self.arch.layers):
                layer, window = params["layers"][str(i)], None if windows is None else windows[i]
                with jax.named_scope(f"layers/{i}"):
                    x, new = cached_block(self, layer, state[i], x, turns_of(turns, window), positions, window)
                states.append(new)
            state = tuple(states)
        x = x[:, -1:] if last else x
        return _head(self.arch, params["norm"], params["embed" if self.arch.tied else "head"], x), state

    def _prefix(self, params: Params) -> int:
        return _slots(params["layers"], self.scan)


def through_layers(arch: Architecture, layers: Params, x: Array, positions: Array | None, scan: bool) -> Array:
    """The stream x [batch, tokens, width] behind all layers, with their parameters one by one or stacked for a scan.

    Positions [batch, tokens] are as in a call of the model; None are 0, 1, 2, ...
    """
    kept, tokens = _slots(layers, scan), x.shape[1]
    at = prefix.behind(_in_order(tokens) if positions is None else positions, kept)
    turns, windows = turns_by_kind(arch, at, kept + tokens), _windows(arch)
    if scan:

        def body(x: Array, layer: Any) -> tuple[Array, None]:
            params, window = layer
            return block(arch, params, x, turns_of(turns, window), positions, window), None

        with jax.named_scope("layers"):
            return lax.scan(body, x, (layers, windows))[0]
    for i in range(arch.layers):
        window = None if windows is None else windows[i]
        with jax.named_scope(f"layers/{i}"):
            x = block(arch, layers[str(i)], x, turns_of(turns, window), positions, window)
    return x


def _slots(layers: Params, scan: bool) -> int:
    return prefix.slots(layers if scan else layers["0"])


def _named_norm(arch: Architecture, layer: Params, name: str, x: Array) -> Array:
    """A norm of the layer with its site, where the architecture has it."""
    return checkpoint_name(normed(arch, layer[name], x), f"{name}/output") if name in arch.norms else x


def _windows(arch: Architecture) -> np.ndarray | None:
    """int32 [layers]; None where every layer sees everything."""
    return np.array([arch.window(i) for i in range(arch.layers)], np.int32) if any(arch.windows) else None


def _seen(arch: Architecture, positions: Array, slots: Array, window: Array | None) -> Array:
    """`visible` [batch, 1, tokens, slots] within the latest `window` tokens, 0 for all; an encoder sees all."""
    if arch.encoding is not None:
        return (slots >= 0)[:, None, None, :]
    seen = visible(positions, slots)
    if window is None:
        return seen
    age = positions[:, None, :, None] - slots[:, None, None, :]
    return seen & ((window == 0) | (age < window))


def _capped(x: Array, cap: float | None) -> Array:
    return x if cap is None else jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap))


def _in_order(tokens: int) -> Array:
    """Positions 0, 1, 2, ...: int32 [1, tokens]."""
    return jnp.arange(tokens, dtype=jnp.int32)[None]


def _embed(arch: Architecture, params: Params, tokens: Array, positions: Array) -> Array:
    table = params["positions"] if arch.learned_positions else None
    return _stream(arch, params["embed"], table, tokens, positions)


@partial(jax.jit, static_argnums=0)
def _stream(arch: Architecture, embed: Array, table: Array | None, tokens: Array, positions: Array) -> Array:
    # An id outside the vocabulary gives NaN instead of some other word's row; so does a position outside the table.
    x = jnp.take(embed, tokens, axis=0, mode="fill").astype(jnp.float32)
    if arch.embed_scale != 1:
        x = x * jnp.float32(arch.embed_scale)
    if table is not None:
        own = jnp.take(table, jnp.maximum(positions, 0), axis=0, mode="fill").astype(jnp.float32)
        x = x + jnp.broadcast_to(own, x.shape)
    return checkpoint_name(x, "residual/embed")


@partial(jax.jit, static_argnums=0)
def _head(arch: Architecture, norm: Params, head: Array, x: Array) -> Array:
    x = checkpoint_name(normed(arch, norm, x), "norm/output")
    return _capped(jnp.einsum("btd,vd->btv" if arch.tied else "btd,dv->btv", x, head), arch.logit_cap)


def _heads(arch: Architecture, attn: Params, name: str, x: Array) -> Array:
    """Queries or keys [batch, tokens, heads, head_dim] before RoPE, normalized where the architecture says so."""
    batch, tokens, _ = x.shape
    y = linear(attn, name, x)
    if arch.qk_norm == "width":
        y = normed(arch, attn[f"{name}_norm"], y)
    y = y.reshape(batch, tokens, -1, arch.head_dim)
    return normed(arch, attn[f"{name}_norm"], y) if arch.qk_norm == "head" else y


def _layer(
    arch: Architecture,
    layer: Params,
    x: Array,
    turns: Turns | None,
    attend: Callable[[Array, Array, Array], tuple[Array, Any]],
) -> tuple[Array, Any]:
    """One layer around `attend`: (q, k, v) [batch, tokens, heads, dim] to mixed values and the cache's new state."""
    batch, tokens, _ = x.shape
    attn, ffn = layer["attn"], layer["ffn"]
    h = _named_norm(arch, layer, "attn_norm", x)
    q, k = _heads(arch, attn, "q", h), _heads(arch, attn, "k", h)
    v = linear(attn, "v", h).reshape(batch, tokens, arch.kv_heads, arch.head_dim)
    q = checkpoint_name(q if turns is None else rotate(q, turns), "attn/query")
    k = checkpoint_name(k if turns is None else rotate(k, turns), "attn/key")
    v = checkpoint_name(v, "attn/value")
    mixed, state = attend(q, k, v)
    mixed = checkpoint_name(mixed.reshape(batch, tokens, arch.heads * arch.head_dim), "attn/mixed")
    between = x + _named_norm(arch, layer, "attn_post_norm", linear(attn, "o", mixed))
    between = checkpoint_name(_named_norm(arch, layer, "attn_sum_norm", between), "residual/attn")
    h = _named_norm(arch, layer, "ffn_norm", x if arch.parallel else between)
    y = mixture(arch, ffn, h) if "router" in ffn else feed_forward(arch, ffn, h, "ffn/product")
    after = between + _named_norm(arch, layer, "ffn_post_norm", y)
    return checkpoint_name(_named_norm(arch, layer, "ffn_sum_norm", after), "residual/ffn"), state


def _scaled(arch: Architecture, q: Array) -> Array:
    return q * jnp.float32(arch.head_dim**-0.5 if arch.query_scale is None else arch.query_scale)


@partial(jax.jit, static_argnums=0)
def block(
    arch: Architecture,
    layer: Params,
    x: Array,
    turns: Turns | None,
    positions: Array | None,
    window: Array | None = None,
) -> Array:
    """One layer on x [batch, tokens, width]; `turns` from `rotations(arch, positions)`, `window` an int32, 0 for all.

    Positions None are 0, 1, 2, ...: a decoder's attention then skips most of what the mask would hide.
    """
    tokens, kept = x.shape[1], prefix.slots(layer)
    at = prefix.behind(_in_order(tokens) if positions is None else positions, kept)
    places = prefix.places(kept, at)

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        q, k, v = _scaled(arch, q), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        k, v = prefix.before(layer, "key", k), prefix.before(layer, "value", v)
        ordered = positions is None and arch.encoding is None
        whole = causal_parts(tokens) if ordered else [(0, tokens, tokens)]
        parts = [(start, stop, kept + slots) for start, stop, slots in whole]

        def scores(start: int, stop: int, slots: int) -> Array:
            return _capped(grouped_scores(q[:, start:stop], k[:, :, :slots]), arch.score_cap)

        def probabilities(start: int, stop: int, slots: int) -> Array:
            own = s[:, :, start:stop, :slots]
            seen = _seen(arch, at[:, start:stop], places[:, :slots], window)
            return jax.nn.softmax(jnp.where(seen, own, jnp.full_like(own, MASKED)), axis=-1)

        # Sites are whole squares; where no tap sits on them, the compiler sees that only the parts are read.
        s = checkpoint_name(square([scores(*part) for part in parts]), "attn/scores")
        p = checkpoint_name(square([probabilities(*part) for part in parts]), "attn/probabilities")
        mixed = [grouped_mix(p[:, :, start:stop, :slots], v[:, :, :slots]) for start, stop, slots in parts]
        return jnp.concatenate(mixed, axis=1), None

    return _layer(arch, layer, x, turns, attend)[0]


@partial(jax.jit, static_argnums=0)
def cached_block(
    model: Decoder,
    layer: Params,
    state: Any,
    x: Array,
    turns: Turns | None,
    positions: Array,
    window: Array | None = None,
) -> tuple[Array, Any]:
    """One layer on x [batch, tokens, width] that appends to its cache; the output and the new state."""
    kept = prefix.slots(layer)

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        keys = model.key_cache.append(state[0], k, positions)
        values = model.value_cache.append(state[1], v, positions)
        # The scale goes onto the query: a mask that the cache has written must stay what it is.
        s = model.key_cache.scores(keys, _scaled(model.arch, q), positions)
        if window is not None or model.arch.score_cap is not None:
            # Which position a slot holds the cache knows; its values are not read for that.
            seen = _seen(model.arch, positions, model.key_cache.decode(keys)[1], window)
            s = jnp.where(seen, _capped(s, model.arch.score_cap), jnp.full_like(s, MASKED))
        s = jnp.concatenate([first(q), s], axis=-1) if kept else s
        p = checkpoint_name(jax.nn.softmax(checkpoint_name(s, "attn/scores"), axis=-1), "attn/probabilities")
        mixed = model.value_cache.mix(values, p[..., kept:])
        if kept:
            mixed = mixed + grouped_mix(p[..., :kept], prefix.remembered(layer, "value", len(x)))
        return mixed, (keys, values)

    def first(q: Array) -> Array:
        """Scores of the prefix, which no cache holds."""
        s = grouped_scores(_scaled(model.arch, q), prefix.remembered(layer, "key", len(x)))
        seen = _seen(model.arch, prefix.behind(positions, kept), jnp.arange(kept, dtype=jnp.int32)[None], window)
        return jnp.where(seen, _capped(s, model.arch.score_cap), jnp.full_like(s, MASKED))

    return _layer(model.arch, layer, x, turns, attend)


def initial(arch: Architecture, key: Array) -> dict[str, Any]:
    """Random float32 parameters of an architecture, variance 1 / fan-in, gains one and biases zero."""
    keys = jax.random.split(key, len(arch.shapes))
    return nest({path: _initial(k, path, shape) for k, (path, shape) in zip(keys, arch.shapes.items(), strict=True)})


def _initial(key: Array, path: str, shape: tuple[int, ...]) -> Array:
    if path.endswith("/scale"):
        return jnp.ones(shape, jnp.float32)
    if path.endswith(("_bias", "/bias")):
        return jnp.zeros(shape, jnp.float32)
    fan_in = shape[1] if path in TABLES else shape[-2]
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
