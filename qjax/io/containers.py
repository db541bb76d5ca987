"""The containers by name, and a checkpoint's settings looked up among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from qjax.io import awq, bitsandbytes, compressed_tensors, gptq, modelopt
from qjax.io.container import Container

CONTAINERS: dict[str, Container] = {
    container.name: container for container in (compressed_tensors.CONTAINER, gptq.CONTAINER, awq.CONTAINER)
}


class Readable(Protocol):
    """What settings say of a module: how its tensors make a leaf [inputs, outputs] of a given shape."""

    def read(self, module: str, tensors: Mapping[str, np.ndarray], shape: tuple[int, int]) -> Any: ...


SCHEMES: dict[str, Callable[[Mapping[str, Any]], Callable[[str], Readable | None]]] = {
    **{name: container.schemes for name, container in CONTAINERS.items()},
    "bitsandbytes": bitsandbytes.schemes,
    "modelopt": modelopt.schemes,
}
"""By `quant_method`: the containers, and those that are read only."""


def schemes(config: Mapping[str, Any] | None) -> Callable[[str], Readable | None]:
    """Which scheme a linear module has, from a `quantization_config`; of None, that every module is a float.

    Raises:
        ValueError: an unknown `quant_method`, or settings that its container cannot read.
    """
    if config is None:
        return lambda module: None
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if not isinstance(method, str) or method not in SCHEMES:
        raise ValueError(f"quant_method {method!r} cannot be read, only {', '.join(SCHEMES)}; load a float model")
    try:
        return SCHEMES[method](config)
    except (KeyError, TypeError, AttributeError, re.error) as error:  # settings of another structure
        raise ValueError(f"quantization_config of {method} is malformed ({type(error).__name__}: {error})") from error
