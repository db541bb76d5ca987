"""The model under study: a demo model, a checkpoint, or any function a module offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import qjax
from experiments import settings
from qjax import models
from qjax.models.generation import generate


class Subject(NamedTuple):
    """A model (params, tokens) -> logits, its float params, its tokenizer, and its weights' cells on the file's grid.

    `cells` maps a path to the width of its weights' cells (empty where the weights lie on no grid).
    """

    model: Any
    params: Any
    tokenizer: Any
    cells: dict[str, Any]


def load(name: str | None) -> Subject:
    """None is SmolLM2-135M-Instruct; else a path, a hub id, or your own: "module:function" or "file.py:function".

    That function takes no argument and returns (model, params, tokenizer), or these and the cells.
    """
    if name is not None and ":" in name:
        place, function = name.rsplit(":", 1)
        return Subject(*(*getattr(settings.module(place), function)(), {})[:4])
    path = models.find(name)
    return Subject(*models.load(path), models.cells(path) if path.suffix == ".gguf" else {})


def tokenize(subject: Subject, text: str) -> list[int]:
    """Token ids of a text, without the start token some tokenizers put in front."""
    ids = [int(i) for i in subject.tokenizer.encode(text)]
    return ids[1:] if ids and ids[0] == getattr(subject.tokenizer, "bos", None) else ids


def continuations(subject: Subject, params: Any, prompts: Sequence[str], steps: int) -> list[str]:
    """The most probable continuation of each prompt, token by token (greedy: the same on every run)."""
    ids = [[int(i) for i in subject.tokenizer.encode(prompt)] for prompt in prompts]
    longest = max(map(len, ids))
    # Padded on the left into one batch: one compiled loop for all prompts.
    tokens = jnp.asarray([[0] * (longest - len(row)) + row for row in ids], jnp.int32)
    lengths = jnp.asarray([len(row) for row in ids], jnp.int32)
    out = generate(subject.model, params, tokens, steps, lengths=lengths)
    return [subject.tokenizer.decode(row) for row in out]


def runnable(subject: Subject) -> Callable[[Any, Any], Any]:
    """The model as a function of quantized params, or of a Program."""
    # A Program's taps sit inside the blocks, which are entered then: one compiled whole instead of compiled blocks.
    plain, whole = qjax.quantized(subject.model), jax.jit(qjax.tapped(subject.model))
    return lambda params, tokens: (whole if isinstance(params, qjax.Program) else plain)(params, tokens)
