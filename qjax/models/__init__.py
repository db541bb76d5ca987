"""Models: one functional decoder configured by data, and the checkpoints it can be read from."""

from __future__ import annotations

from qjax.models.architecture import Architecture, Experts
from qjax.models.decoder import SITES, Decoder, stack_layers, unstack_layers
from qjax.models.generation import generate
from qjax.models.gguf import cells
from qjax.models.loading import find, load
from qjax.models.tokenizer import Tokenizer

__all__ = [
    "SITES",
    "Architecture",
    "Decoder",
    "Experts",
    "Tokenizer",
    "cells",
    "find",
    "generate",
    "load",
    "stack_layers",
    "unstack_layers",
]
