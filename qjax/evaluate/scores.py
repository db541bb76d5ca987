"""Perplexity, divergence and flips of a language model, in one streaming pass over windows of tokens.

Protocol, stated with every number (`PROTOCOL`): the text is tokenized once, without a BOS token, and cut into
non-overlapping windows; in each window of T tokens the T - 1 next-token predictions are scored, the first token is
context only; perplexity is exp of the mean natural-log loss over all of them. This is the protocol of the GPTQ
authors' `llama.py` at another window length: numbers are comparable only at equal text, tokenizer and T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qjax.metrics import kl_divergence, most_likely
from qjax.trace.stages import stages

PROTOCOL = (
    "non-overlapping windows of {length} tokens, no BOS; the {scored} next-token predictions of each are scored; "
    "perplexity = exp(mean natural-log loss)"
)

Model = Callable[[Any, jax.Array], jax.Array]
Reference = Callable[[int], jax.Array]


class Scores(NamedTuple):
    """Per-token scores of one model; each array is float64 [windows, T - 1].

    `loss` is in nats. `divergence` is KL(reference || model) in nats and `flips` is 1 where the most probable token
    differs; both are None when no reference was given. `protocol` says in words how they were taken.
    """

    loss: np.ndarray
    divergence: np.ndarray | None
    flips: np.ndarray | None
    protocol: str

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss.mean()))

    @property
    def kl_mean(self) -> float | None:
        return None if self.divergence is None else float(self.divergence.mean())

    @property
    def kl_p99(self) -> float | None:
        return None if self.divergence is None else float(np.quantile(self.divergence, 0.99))

    @property
    def top1_flip(self) -> float | None:
        return None if self.flips is None else float(self.flips.mean())


@jax.jit
def score(logits: jax.Array, tokens: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, KL(reference || model) and top-1 flip of every next-token prediction.

    `logits` and `reference` are [B, T, V] (computed in float32), `tokens` is int [B, T]; each result is float32
    [B, T - 1]. Nothing of size V is kept per token.
    """
    ours, theirs = logits[:, :-1], reference[:, :-1]
    flips = most_likely(ours) != most_likely(theirs)
    return _loss(logits, tokens), kl_divergence(ours, theirs), flips.astype(jnp.float32)


@jax.jit
def _loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    ours = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    return -jnp.take_along_axis(ours, tokens[:, 1:, None], axis=-1)[..., 0]


def evaluate(
    fn: Model,
    params: Any,
    batches: Sequence[np.ndarray],
    *,
    reference: Reference | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Scores:
    """One streaming pass of `fn(params, tokens) -> logits [B, T, V]` over `batches` of int tokens [B, T].

    `fn` takes float leaves; for quantized ones hand in `qjax.quantized(fn)`. `reference(i)` gives the float model's
    logits of batch i (`remembered`, `recomputed`). `progress` wraps the loop (tqdm). Raises ValueError for an empty
    sequence, an iterator, unequal windows, logits of another shape, or a loss that is not finite.
    """
    if not isinstance(batches, Sequence | np.ndarray) or not len(batches):
        raise ValueError("batches must be a non-empty sequence of token arrays [B, T]")
    length = batches[0].shape[-1]
    columns: list[tuple[np.ndarray, ...]] = []
    for index, batch in enumerate(progress(batches)):
        if batch.ndim != 2 or batch.shape[-1] != length:
            raise ValueError(f"batch {index} has shape {batch.shape}; every window must be [B, {length}]")
        tokens = jnp.asarray(batch)
        logits = fn(params, tokens)
        if logits.shape[:-1] != tokens.shape:
            raise ValueError(f"the model gave logits {logits.shape} for tokens {tokens.shape}")
        if reference is None:
            columns.append((np.asarray(_loss(logits, tokens)),))
        else:
            columns.append(tuple(np.asarray(column) for column in score(logits, tokens, reference(index))))
    stacked = [np.concatenate(column).astype(np.float64) for column in zip(*columns, strict=True)]
    if not np.isfinite(stacked[0]).all():
        raise ValueError(
            f"the loss is not finite at {int((~np.isfinite(stacked[0])).sum())} of {stacked[0].size} tokens"
        )
    protocol = PROTOCOL.format(length=length, scored=length - 1)
    divergence, flips = (stacked[1], stacked[2]) if reference is not None else (None, None)
    return Scores(stacked[0], divergence, flips, protocol)


def recomputed(fn: Model, params: Any, batches: Sequence[np.ndarray]) -> Reference:
    """Reference logits computed anew at each request: no memory, the cost of a forward pass each time."""
    return lambda index: fn(params, jnp.asarray(batches[index]))


def remembered(
    fn: Model,
    params: Any,
    batches: Sequence[np.ndarray],
    by: str = "layers/*",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Reference:
    """Reference logits from what the model holds before its head, kept on the host for every batch.

    The model is cut behind its last group of parameters (`qjax.stages`), so a request costs the head alone and memory
    is [B, T, D] a batch instead of [B, T, V] (85 times less for SmolLM2). Raises CannotCut where the model has no
    such cut; `recomputed` always works.
    """
    segments = stages(fn, params, jnp.asarray(batches[0]), by=by)
    *body, head = ((jax.jit(segment.fn), segment.leaves(params)) for segment in segments)
    kept = []
    for batch in progress(batches):
        carry = segments.begin(jnp.asarray(batch))
        for run, leaves in body:
            carry = run(leaves, carry)
        kept.append(jax.device_get(carry))

    def logits(index: int) -> jax.Array:
        run, leaves = head
        return segments.finish(run(leaves, jax.device_put(kept[index])))

    return logits
