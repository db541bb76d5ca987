"""A toy study: every kind of row in seconds."""

from __future__ import annotations

from pathlib import Path

from experiments.settings import defaults


def get_config():
    config = defaults("toy")
    config.pictures = True
    config.model = f"{Path(__file__).parent / 'toy.py'}:load"
    config.replicates = 2
    config.recipe = {"methods": ("rtn", "gptq"), "format": ("int3_g64_affine",)}
    config.extra = {"w8a8": {"granularity": ("token", "tensor")}}
    config.calibration = {"windows": 4, "length": 64, "batch": 2}
    config.evaluation = {"windows": 4, "length": 64, "batch": 2, "part": "report"}
    config.claims = (("gptq int3_g64_affine", "rtn int3_g64_affine"), ("rtn nothing", "rtn int3_g64_affine"))
    config.places = (("largest/median channel", "keys", "values"), ("kurtosis", "slow keys", "fast keys"))
    config.relations = (("crest", "output error"), ("zeros", "perplexity"))
    config.samples = {"prompts": ("The assert",), "rows": ("float",), "steps": 4}
    return config
