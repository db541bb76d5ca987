"""Key-value caches: one interface, one file a codec; attention over the quantized one."""

from __future__ import annotations

from qjax.kv.cache import Cache
from qjax.kv.cached_attention import decode_attention
from qjax.kv.float_cache import FloatCache, FloatState
from qjax.kv.quantized_cache import QuantizedCache, QuantizedState

__all__ = ["Cache", "FloatCache", "FloatState", "QuantizedCache", "QuantizedState", "decode_attention"]
