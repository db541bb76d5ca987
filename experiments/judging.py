"""Verdicts: of two rows, of two places in the float model, of two quantities that grow together.

Each takes what every replicate found and gives a claim as `metrics.json` holds it: names, the effect in each replicate
("log_ratios"), its mean and 95 % interval, the verdict. An effect is below zero where the claim holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from qjax import evaluate
from qjax.evaluate.comparison import SignTest

Entry = Mapping[str, Any]  # a row as `rows/*.json` holds it


def rows(better: str, worse: str, pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, Any]:
    """Two rows by the log ratio of their perplexities, and by the error of every matrix's output."""
    effects = [math.log(a["metrics"]["perplexity"] / b["metrics"]["perplexity"]) for a, b in pairs]
    errors = [[output_errors(entry["leaves"]) for entry in pair] for pair in pairs]
    signs = [evaluate.sign_test(a, b) for a, b in errors if a.keys() == b.keys() and a]
    bits = pairs[0][0]["metrics"]["bpw"] - pairs[0][1]["metrics"]["bpw"]
    return _claim(better, worse, effects, signs) | {"bpw_difference": bits}


def place(measure: str, larger: str, smaller: str, found: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Two places, the measure larger at the first: the mean of its log ratio over the layers, and the layers' signs.

    >>> claim = place("kurtosis", "a", "b", [{"kurtosis of a": [4.0, 8.0], "kurtosis of b": [2.0, 2.0]}])
    >>> claim["better"], round(claim["mean"] / math.log(2), 3), claim["matrices"][0]["wins"]
    ('kurtosis of a', -1.5, 2)
    """
    names = f"{measure} of {larger}", f"{measure} of {smaller}"
    says = f"{measure} larger: {larger} than {smaller}"
    effects, signs = [], []
    for values in found:
        large, small = (np.asarray(values[name], np.float64) for name in names)
        effects.append(float(np.mean(np.log(small / large))))
        signs.append(evaluate.sign_test(*({str(i): float(v) for i, v in enumerate(side)} for side in (small, large))))
    return _claim(*names, effects, signs) | {"says": says}


def relation(cause: str, effect: str, found: Sequence[Sequence[Entry]]) -> dict[str, Any]:
    """Two quantities that grow together: minus Spearman's rank correlation over the rows of each replicate.

    With "output error" the points are all matrices of all rows; with "perplexity" the rows, by the mean over matrices.
    """
    effects = []
    for entries in found:
        parts = [points(cause, effect, entry) for entry in entries]
        ranks = [scipy.stats.rankdata(np.concatenate(side)) for side in zip(*parts, strict=True)]
        effects.append(-float(np.corrcoef(*ranks)[0, 1]))
    return _claim(f"rank correlation of {cause}", effect, effects, []) | {"says": f"{cause} grows with {effect}"}


def points(cause: str, effect: str, entry: Entry) -> tuple[list[float], list[float]]:
    """The causes and the effects of one row: a pair for each matrix, or a single one for a row's perplexity."""
    inputs = entry["inputs"]
    if effect == "perplexity":
        return [float(np.mean([x[cause] for x in inputs.values()]))], [entry["metrics"]["perplexity"]]
    errors = {path: error for path, error in output_errors(entry["leaves"]).items() if path in inputs}
    return [inputs[path][cause] for path in errors], list(errors.values())


def sentence(claim: Entry) -> str:
    """What a claim says, for people.

    >>> sentence({"better": "gptq", "worse": "rtn", "verdict": "undecided"})
    'gptq better than rtn'
    """
    return claim.get("says", f"{claim['better']} better than {claim['worse']}")


def output_errors(leaves: Sequence[Entry]) -> dict[str, float]:
    """The error of every matrix's output; what a transform added (a prefix) is no matrix and has none."""
    return {leaf["path"]: leaf["output_error"] for leaf in leaves if leaf["output_error"] is not None}


def _claim(better: str, worse: str, effects: list[float], signs: Sequence[SignTest]) -> dict[str, Any]:
    return {
        "better": better,
        "worse": worse,
        **evaluate.verdict(effects)._asdict(),
        "log_ratios": effects,
        "matrices": [s._asdict() for s in signs],
    }
