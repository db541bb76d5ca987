"""Key-value caches: one interface, one file a codec."""

from __future__ import annotations

from qjax.kv.cache import Cache
from qjax.kv.float_cache import FloatCache, FloatState
from qjax.kv.quantized_cache import QuantizedCache, QuantizedState

__all__ = ["Cache", "FloatCache", "FloatState", "QuantizedCache", "QuantizedState"]
