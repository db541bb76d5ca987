"""compressed-tensors: what llm-compressor writes and vLLM and transformers read (catalogue U4).

Layouts and settings as in compressed-tensors 0.20 (`compressors/`, `quantization/quant_args.py`). Its global scale of
NVFP4 is a divisor where ours is a factor; the reciprocal is the one number here that is only as near as float32 has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qjax.formats import FULL
from qjax.formats.elements import E2M1, E4M3, Element
from qjax.formats.integer import Int
from qjax.io import cache_scales, inputs
from qjax.io.container import EXPERT, Container, Stored, patterns
from qjax.io.layout import Layout, Leaf, Scheme, Strategy, Tensor, strategy

FLOATS = ("float32", "bfloat16", "float16")
ALL: tuple[Strategy, ...] = ("channel", "group", "tensor", "block")
SCALE = Tensor("weight_scale", "scale")
PACKED4 = Tensor("weight_packed", "codes", "uint8", packed=1)

LAYOUTS = (
    Layout(
        "pack-quantized",
        (
            Tensor("weight_packed", "codes", "int32", packed=1),
            SCALE,
            Tensor("weight_zero_point", "zero", "int32", packed=0, affine=True),
            Tensor("weight_shape", "shape", "int64"),
        ),
        element="int",
        scale=FLOATS,
        strategies=("channel", "group"),
        bits=tuple(range(1, 9)),
    ),
    Layout(
        "int-quantized",
        (
            Tensor("weight", "codes", "int8", shift="half"),
            SCALE,
            Tensor("weight_zero_point", "zero", "int8", shift="half", affine=True),
        ),
        element="int",
        scale=FLOATS,
        strategies=ALL,
        bits=tuple(range(1, 9)),
    ),
    Layout("float-quantized", (Tensor("weight", "codes", "float8_e4m3fn"), SCALE), "e4m3", FLOATS, ALL),
    Layout(
        "nvfp4-pack-quantized",
        (
            PACKED4,
            Tensor("weight_scale", "scale", "float8_e4m3fn"),
            Tensor("weight_global_scale", "tensor_scale", "float32", reciprocal=True),
        ),
        element="e2m1",
        scale=("float8_e4m3fn",),
        strategies=("group",),
        group=16,
    ),
    Layout(
        "mxfp4-pack-quantized",
        (PACKED4, Tensor("weight_scale", "scale", "uint8")),
        element="e2m1",
        scale=("float8_e8m0fnu",),
        strategies=("group",),
        group=32,
    ),
    Layout(
        "mxfp8-quantized",
        (Tensor("weight", "codes", "float8_e4m3fn"), Tensor("weight_scale", "scale", "uint8")),
        element="e4m3",
        scale=("float8_e8m0fnu",),
        strategies=("group",),
        group=32,
    ),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}


def choose(path: str, leaf: Leaf, fitting: list[Layout]) -> Layout:
    """The layout of a leaf among those that hold it: integers are packed unless their inputs are integers too."""
    names = {layout.name: layout for layout in fitting}
    if leaf.rounding is None:
        return fitting[0]
    if inputs.settings(leaf.rounding) is None:
        raise ValueError(
            f"{path}: compressed-tensors does not round inputs to {leaf.rounding.format.name} as we do; it has the "
            "dynamic int8_token_f32, fp8_e4m3_token_f32, fp8_e4m3_g128_f32 and the static int8_tensor, fp8_e4m3_tensor"
        )
    return names.get("int-quantized", fitting[0])


def settings(stored: Mapping[str, Stored], plain: list[str]) -> dict[str, Any]:
    """The `quantization_config` of modules: one group for each kind, by name unless there is only one."""
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for module, (leaf, layout) in stored.items():
        group = {
            "weights": _weights(leaf, layout),
            "input_activations": None if leaf.rounding is None else inputs.settings(leaf.rounding),
            "output_activations": None,
            "format": layout.name,
        }
        groups.setdefault(repr(group), (group, []))[1].append(module)
    single = len(groups) == 1
    return {
        "quant_method": "compressed-tensors",
        "format": next(iter(groups.values()))[0]["format"] if single else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": ["Linear"] if single else _targets(modules), **group}
            for i, (group, modules) in enumerate(groups.values())
        },
        "ignore": _targets(plain),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": "0.20.0",
    }


def _targets(modules: list[str]) -> list[str]:
    """Names of modules, and a pattern for the experts of a layer: by it runtimes know which group is theirs."""
    names = [module for module in modules if not EXPERT.search(module)]
    return [*names, *(f"re:{pattern}$" for pattern in patterns(m for m in modules if EXPERT.search(m)))]


def _weights(leaf: Leaf, layout: Layout) -> dict[str, Any]:
    meta = leaf.q.meta
    kind = strategy(meta.block)
    return {
        "num_bits": meta.element.bits,
        "type": "int" if isinstance(meta.element, Int) else "float",
        "symmetric": meta.offset is None and meta.element.min < 0,
        "strategy": "tensor_group" if layout.name.startswith("nvfp4") else kind,
        "group_size": meta.block[0] if kind == "group" else None,
        "block_structure": [meta.block[1], meta.block[0]] if kind == "block" else None,
        "dynamic": False,
        # compressed-tensors keeps scales in its own type unless told of a byte.
        "scale_dtype": {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8", "mxfp8": "torch.uint8"}.get(
            layout.name.partition("-")[0]
        ),
    }


def schemes(config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """Which scheme a module has, by the name of a linear layer: the settings read back.

    Raises:
        ValueError: settings that ask for something which is not in the weights, or that are unknown.
    """
    cache_scales.parse(config.get("kv_cache_scheme"))
    for key in ("transform_config", "sparsity_config", "moe_sparsity_config"):
        if config.get(key) not in (None, {}, []):
            raise ValueError(f"compressed-tensors: {key} is {config[key]!r}, which cannot be read")
    if config.get("quantization_status", "compressed") not in ("compressed", "frozen"):
        raise ValueError(f"compressed-tensors: quantization_status is {config['quantization_status']!r}")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise ValueError(f"compressed-tensors: config_groups must be groups of settings, not {groups!r}")
    found = [(list(group["targets"]), _scheme(name, group, config)) for name, group in groups.items()]
    ignore = list(config.get("ignore") or [])
    for targets in (ignore, *(targets for targets, _ in found)):
        _match("", targets)  # patterns that are none are told now

    def of(module: str) -> Scheme | None:
        if _match(module, ignore):
            return None
        matches = [(rank, scheme) for targets, scheme in found if (rank := _match(module, targets))]
        return max(matches, key=lambda match: match[0])[1] if matches else None

    return of


def _match(module: str, targets: list[str]) -> int:
    """How specific the best target is: the name itself 3, a pattern 2, the class 1; 0 if none names the module."""
    ranks = [0]
    for target in targets:
        if target == module:
            ranks.append(3)
        elif target.startswith("re:") and re.match(target.removeprefix("re:"), module):
            ranks.append(2)
        elif target == "Linear":
            ranks.append(1)
    return max(ranks)


def _scheme(name: str, group: Mapping[str, Any], config: Mapping[str, Any]) -> Scheme:
    args, where = group.get("weights"), f"compressed-tensors: {name}"
    form = group.get("format") or config.get("format")
    if not isinstance(args, Mapping):
        raise ValueError(f"{where}: weights are {args!r}; only groups that quantize weights can be read")
    if group.get("output_activations") is not None:
        raise ValueError(f"{where}: output_activations cannot be read")
    kind, bits = args.get("type", "int"), int(args.get("num_bits", 8))
    if form == "naive-quantized":
        form = "int-quantized" if kind == "int" else "float-quantized"
    if form not in BY_NAME:
        raise ValueError(f"{where}: format {form!r} is none of {', '.join(BY_NAME)}")
    element: Element | None = {("float", 4): E2M1, ("float", 8): E4M3}.get((kind, bits))
    if kind == "int" and 1 <= bits <= 8:
        element = Int(bits)
    layout = BY_NAME[form]
    if element is None or layout.element != ("int" if kind == "int" else element.name):
        raise ValueError(f"{where}: {form} holds no {kind} of {bits} bits")
    block = _block(where, args)
    if strategy(block) not in layout.strategies or layout.group not in (None, block[0]):
        raise ValueError(f"{where}: {form} has no blocks of {block}")
    rounding = inputs.parse(f"{where}: input_activations", group.get("input_activations"))
    return Scheme(layout, element, block, bool(args.get("symmetric", True)), rounding)


def _block(where: str, args: Mapping[str, Any]) -> tuple[int, int]:
    kind, size = args.get("strategy"), args.get("group_size")
    if kind is None:
        kind = "tensor" if size is None else "channel" if size == -1 else "group"
    if kind in ("group", "tensor_group") and isinstance(size, int) and size > 0:
        return size, 1
    if kind == "block" and len(structure := args.get("block_structure") or ()) == 2:
        return int(structure[1]), int(structure[0])
    whole = {"channel": (FULL, 1), "tensor": (FULL, FULL)}
    if kind not in whole:
        raise ValueError(f"{where}: strategy {kind!r} with group_size {size!r} is unknown")
    return whole[kind]


CONTAINER = Container("compressed-tensors", LAYOUTS, choose, settings, schemes)
