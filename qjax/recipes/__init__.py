"""Published methods as compositions of transforms, one file a paper, with the authors' defaults and the catalogue ID.

The mathematics stays in its solver; a recipe is what the paper did with it. A study's config names them by their
names in `__all__`.
"""

from __future__ import annotations

from qjax.recipes.frantar2022_gptq import gptq
from qjax.recipes.round_to_nearest import rtn
from qjax.recipes.xiao2022_smoothquant import smoothquant
from qjax.recipes.yao2022_zeroquant import w8a8
from qjax.recipes.zhang2024_lqer import lqer

__all__ = ["gptq", "lqer", "rtn", "smoothquant", "w8a8"]
