"""Where text comes from. Every source is one string with a name and the SHA-256 of its UTF-8 bytes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

# The corpora papers report on: name -> arguments of `datasets.load_dataset`, the split, and how lines are joined.
HUB = {
    "wikitext2": (("Salesforce/wikitext", "wikitext-2-raw-v1"), "test", "\n\n"),
    "wikitext2-train": (("Salesforce/wikitext", "wikitext-2-raw-v1"), "train", "\n\n"),
    "wikitext2-valid": (("Salesforce/wikitext", "wikitext-2-raw-v1"), "validation", "\n\n"),
}


class Text(NamedTuple):
    """A named text.

    `name` says where it came from, `text` is the whole of it, `sha256` is the hex digest of its UTF-8 bytes.
    """

    name: str
    text: str
    sha256: str


def named(name: str, text: str) -> Text:
    """`Text` with its hash; an empty text raises ValueError.

    >>> named("x", "abc").sha256[:8]
    'ba7816bf'
    """
    if not text.strip():
        raise ValueError(f"the text {name!r} is empty")
    return Text(name, text, hashlib.sha256(text.encode()).hexdigest())


def topics() -> Text:
    """The standard library's `pydoc_data.topics` (about 460,000 characters): the default that needs no download.

    The text differs between Python versions, so its name carries the version; its hash is printed with every result.

    >>> topics().name.startswith("pydoc_data.topics (python 3.")
    True
    """
    from pydoc_data.topics import topics as pages

    version = ".".join(map(str, sys.version_info[:3]))
    return named(f"pydoc_data.topics (python {version})", "\n\n".join(pages[key] for key in sorted(pages)))


def from_file(path: str | Path) -> Text:
    """The text of a UTF-8 file. A missing file raises FileNotFoundError, other bytes UnicodeDecodeError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no text file at {path}")
    return named(path.name, path.read_text(encoding="utf-8"))


def from_hub(name: str) -> Text:
    """A corpus of `HUB` through the package `datasets`, lines joined as the GPTQ authors' loader joins them.

    Raises ValueError for an unknown name and ImportError, with the remedy, where `datasets` is not installed.
    """
    if name not in HUB:
        raise ValueError(f"unknown corpus {name!r}; known: {', '.join(sorted(HUB))}")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"the corpus {name!r} needs `pip install datasets`; or name a text file") from error
    arguments, part, joiner = HUB[name]
    return named(
        f"{name} ({'/'.join(arguments)}, {part})", joiner.join(datasets.load_dataset(*arguments)[part]["text"])
    )


def load_text(source: str | Path | None = None) -> Text:
    """The text a study names: None or "topics" (`topics`), a corpus of `HUB` ("wikitext2"), or the path of a file."""
    if source is None or source == "topics":
        return topics()
    if isinstance(source, str) and source in HUB:
        return from_hub(source)
    return from_file(source)
