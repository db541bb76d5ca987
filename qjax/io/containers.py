"""The containers by name, and a checkpoint's settings looked up among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qjax.io import awq, compressed_tensors, gptq
from qjax.io.container import Container
from qjax.io.layout import Scheme

CONTAINERS: dict[str, Container] = {
    container.name: container for container in (compressed_tensors.CONTAINER, gptq.CONTAINER, awq.CONTAINER)
}


def schemes(config: Mapping[str, Any] | None) -> Callable[[str], Scheme | None]:
    """Which scheme a linear module has, from a `quantization_config`; of None, that every module is a float.

    Raises:
        ValueError: an unknown `quant_method`, or settings that its container cannot read.
    """
    if config is None:
        return lambda module: None
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if not isinstance(method, str) or method not in CONTAINERS:
        raise ValueError(f"quant_method {method!r} cannot be read, only {', '.join(CONTAINERS)}; load a float model")
    try:
        return CONTAINERS[method].schemes(config)
    except (KeyError, TypeError, AttributeError, re.error) as error:  # settings of another structure
        raise ValueError(f"quantization_config of {method} is malformed ({type(error).__name__}: {error})") from error
