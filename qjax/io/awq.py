"""AWQ: the GEMM layout of AutoAWQ (catalogue U4).

As in AutoAWQ (`awq/modules/linear/gemm.py`, `awq/utils/packing_utils.py`): 4 bits, eight outputs a word, not in their
order; w = s(q - z).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qjax.formats import FULL
from qjax.formats.integer import Int
from qjax.io.container import Container, Stored, same_everywhere, unrounded
from qjax.io.layout import Layout, Scheme, Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GEMM = Layout(
    "gemm",
    (
        Tensor("qweight", "codes", "int32", packed=0, order=ORDER),
        Tensor("qzeros", "zero", "int32", packed=0, order=ORDER),
        Tensor("scales", "scale", "float16"),
    ),
    element="int",
    scale=("float32", "bfloat16", "float16"),
    strategies=("channel", "group"),
    bits=(4,),
    inputs_first=True,
    whole=True,
)


def settings(stored: Mapping[str, Stored], plain: list[str]) -> dict[str, Any]:
    """The `quantization_config` of modules, which all have one group size."""
    bits, size = same_everywhere("awq", stored)
    config = {"quant_method": "awq", "version": "gemm", "bits": bits, "group_size": size, "zero_point": True}
    return {**config, "modules_to_not_convert": plain}


def schemes(config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """Which scheme a module has: the settings read back.

    Raises:
        ValueError: another version than GEMM, another width than 4, or an unknown group.
    """
    bits, size, version = config["bits"], config["group_size"], str(config.get("version", "gemm")).lower()
    if version != "gemm" or bits != 4 or not isinstance(size, int) or not (size == -1 or size > 0):
        raise ValueError(f"awq: version {version!r} of {bits!r} bits, group_size={size!r}, cannot be read; only gemm")
    kept = ["lm_head", *(config.get("modules_to_not_convert") or [])]
    if not all(isinstance(name, str) for name in kept):
        raise ValueError(f"awq: modules_to_not_convert are {kept[1:]}, not names")
    scheme = Scheme(GEMM, Int(4), (FULL if size == -1 else size, 1))

    def of(module: str) -> Scheme | None:
        return None if any(name in module for name in kept) else scheme

    return of


CONTAINER = Container("awq", (GEMM,), unrounded, settings, schemes)
