"""GPTQ: what GPTQModel and AutoGPTQ write, versions 1 and 2 (catalogue U4).

Layouts as in GPTQModel (`nn_modules/qlinear`, `quantization/config.py`). Version 1 stores each zero less one, which
leaves zero 0 without a code that all readers agree on; version 2 stores it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qjax.formats import FULL
from qjax.formats.integer import Int
from qjax.io.container import Container, Stored, patterns, same_everywhere, unrounded
from qjax.io.layout import Layout, Scheme, Tensor


def _layout(name: str, shift: int) -> Layout:
    return Layout(
        name,
        (
            Tensor("qweight", "codes", "int32", packed=1),
            Tensor("qzeros", "zero", "int32", packed=0, shift=shift),
            Tensor("scales", "scale", "float16"),
            Tensor("g_idx", "groups", "int32"),
        ),
        element="int",
        scale=("float32", "bfloat16", "float16"),
        strategies=("channel", "group"),
        bits=(2, 3, 4, 8),
        inputs_first=True,
        whole=True,
    )


LAYOUTS = (_layout("gptq", 1), _layout("gptq_v2", 0))


def settings(stored: Mapping[str, Stored], plain: list[str]) -> dict[str, Any]:
    """The `quantization_config` of modules, which all have one scheme; what stays float is taken out by name."""
    bits, size = same_everywhere("gptq", stored)
    symmetric = all(leaf.q.meta.offset is None and leaf.q.meta.element.min < 0 for leaf, _ in stored.values())
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": any(leaf.order is not None for leaf, _ in stored.values()),
        "sym": symmetric,
        "checkpoint_format": next(iter(stored.values())).layout.name,
        "pack_dtype": "int32",
        "lm_head": "lm_head" in stored,
        "dynamic": {f"-:^{pattern}$": {} for pattern in patterns(plain) if pattern != "lm_head"},
        "meta": {"quantizer": ["qjax"]},
    }


def schemes(config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """Which scheme a module has: the settings read back.

    Raises:
        ValueError: an unknown version, width or group, or modules with settings of their own.
    """
    version = config.get("checkpoint_format") or config.get("format") or "gptq"
    layout = {layout.name: layout for layout in LAYOUTS}.get(version)
    if layout is None:
        raise ValueError(f"gptq: checkpoint_format {version!r} is none of gptq, gptq_v2")
    bits, size = config["bits"], config["group_size"]
    if bits not in layout.bits or not isinstance(size, int) or not (size == -1 or size > 0):
        raise ValueError(f"gptq: bits={bits!r} with group_size={size!r} cannot be read")
    if config.get("pack_dtype", "int32") != "int32":
        raise ValueError(f"gptq: pack_dtype {config['pack_dtype']!r} cannot be read, only int32")
    dynamic = dict(config.get("dynamic") or {})
    if others := [pattern for pattern in dynamic if not pattern.startswith("-:")]:
        raise ValueError(f"gptq: dynamic settings of their own for {others[0]!r} cannot be read")
    left_out = [re.compile(pattern.removeprefix("-:")) for pattern in dynamic]
    scheme = Scheme(layout, Int(bits), (FULL if size == -1 else size, 1))

    def of(module: str) -> Scheme | None:
        if module == "lm_head" and not config.get("lm_head"):
            return None
        return None if any(pattern.match(module) for pattern in left_out) else scheme

    return of


CONTAINER = Container("gptq", LAYOUTS, unrounded, settings, schemes)
