"""Models: one functional decoder, an encoder of its layers, both configured by data, and the checkpoints of both."""

from __future__ import annotations

from qjax.models.architecture import Architecture, Experts
from qjax.models.decoder import SITES, Decoder, stack_layers, unstack_layers
from qjax.models.encoder import Encoder
from qjax.models.encoding import Encoding, Patches
from qjax.models.generation import generate
from qjax.models.gguf import cells
from qjax.models.loading import find, load, load_encoder
from qjax.models.tokenizer import Tokenizer

__all__ = [
    "SITES",
    "Architecture",
    "Decoder",
    "Encoder",
    "Encoding",
    "Experts",
    "Patches",
    "Tokenizer",
    "cells",
    "find",
    "generate",
    "load",
    "load_encoder",
    "stack_layers",
    "unstack_layers",
]
