"""The block types of ggml and llama.cpp: their structure as data, their bytes, and their own encoders.

`qjax.ggml` makes quantized arrays of them; here are arrays only.
"""

from qjax.formats.ggml.encoding import encode
from qjax.formats.ggml.layout import Parts, pack, unpack
from qjax.formats.ggml.types import IQ4_NL, TYPES, Type, bias, fallback

__all__ = ["IQ4_NL", "TYPES", "Parts", "Type", "bias", "encode", "fallback", "pack", "unpack"]
