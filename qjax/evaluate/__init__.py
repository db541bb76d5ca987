"""What a number smaller costs: perplexity, divergence from the float model, bits, and paired comparisons of methods."""

from __future__ import annotations

from qjax.evaluate.comparison import Verdict, compare, perturb, sign_test, verdict
from qjax.evaluate.scores import PROTOCOL, Reference, Scores, evaluate, recomputed, remembered, score
from qjax.evaluate.size import bpw, bpw_model, disk_bytes

__all__ = [
    "PROTOCOL",
    "Reference",
    "Scores",
    "Verdict",
    "bpw",
    "bpw_model",
    "compare",
    "disk_bytes",
    "evaluate",
    "perturb",
    "recomputed",
    "remembered",
    "score",
    "sign_test",
    "verdict",
]
