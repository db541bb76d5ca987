"""modelopt: NVFP4 and FP8 as NVIDIA's Model Optimizer writes them for Hugging Face (catalogue U4).

As in its `export/unified_export_hf.py` and `quant_utils.py`: scales of tensors are factors here, of weights and of
inputs, where compressed-tensors divides by NVFP4's.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from qjax.formats import FULL, NVFP4, as_format
from qjax.formats.elements import E2M1, E4M3
from qjax.io.inputs import SCALE, Inputs
from qjax.io.layout import Layout, Scheme, Tensor

FOUR = Layout(
    "nvfp4",
    (
        Tensor("weight", "codes", "uint8", packed=1),
        Tensor("weight_scale", "scale", "float8_e4m3fn"),
        Tensor("weight_scale_2", "tensor_scale", "float32"),
    ),
    element="e2m1",
    scale=("float8_e4m3fn",),
    strategies=("group",),
    group=16,
)
EIGHT = Layout(
    "fp8",
    (Tensor("weight", "codes", "float8_e4m3fn"), Tensor("weight_scale", "scale", "float32")),
    element="e4m3",
    scale=("float32",),
    strategies=("tensor",),
)
ALGORITHMS = {
    "NVFP4": Scheme(FOUR, E2M1, (16, 1), inputs=Inputs(NVFP4, SCALE)),
    "W4A16_NVFP4": Scheme(FOUR, E2M1, (16, 1)),
    "FP8": Scheme(EIGHT, E4M3, (FULL, FULL), inputs=Inputs(as_format("fp8_e4m3_tensor_f32"), SCALE)),
}


def schemes(config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """Which scheme a module has: the settings of config.json, or those that hf_quant_config.json calls quantization.

    Raises:
        ValueError: another algorithm, a quantized cache, or another group than NVFP4's.
    """
    name = config.get("quant_algo")
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ValueError(f"modelopt: quant_algo {name!r} cannot be read, only {', '.join(ALGORITHMS)}")
    for key in ("kv_cache_quant_algo", "kv_cache_scheme"):
        if config.get(key):
            raise ValueError(f"modelopt: {key} is {config[key]!r}; scales of a cache cannot be read")
    if ALGORITHMS[name].layout is FOUR and config.get("group_size", 16) not in (None, 16):
        raise ValueError(f"modelopt: group_size is {config['group_size']!r}, NVFP4 has 16")
    excluded = [*(config.get("exclude_modules") or []), *(config.get("ignore") or [])]
    if not all(isinstance(pattern, str) for pattern in excluded):
        raise ValueError(f"modelopt: exclude_modules are {excluded}, not names")

    def of(module: str) -> Scheme | None:
        return None if any(fnmatch.fnmatchcase(module, pattern) for pattern in excluded) else ALGORITHMS[name]

    return of
