"""Text to calibrate on and to measure with: sources with a hash, one fixed split, windows of tokens."""

from __future__ import annotations

from qjax.data.cutting import sample, windows
from qjax.data.sources import Text, from_file, from_hub, load_text, topics
from qjax.data.splits import Splits, split

__all__ = ["Splits", "Text", "from_file", "from_hub", "load_text", "sample", "split", "topics", "windows"]
