"""What an encoder has that a decoder has not, as data: two directions, pictures or types of words, and a head."""

from __future__ import annotations

import math
from dataclasses import dataclass

HEADS = ("states", "words", "each", "first", "pooled")


@dataclass(frozen=True)
class Patches:
    """Pictures as tokens: each patch is one, read row by row, behind a first token that is learned.

    Args:
        image, patch: height and width in pixels.
        channels: numbers in a pixel.

    Raises:
        ValueError: patches that do not fill the picture.

    >>> Patches((224, 224), (16, 16)).count
    196
    """

    image: tuple[int, int]
    patch: tuple[int, int]
    channels: int = 3

    def __post_init__(self) -> None:
        if min(*self.image, *self.patch, self.channels) < 1 or any(
            whole % part for whole, part in zip(self.image, self.patch, strict=True)
        ):
            raise ValueError(
                f"patches of {self.patch} pixels with {self.channels} channels do not fill a picture of {self.image}"
            )

    @property
    def count(self) -> int:
        """How many patches a picture has."""
        return (self.image[0] // self.patch[0]) * (self.image[1] // self.patch[1])

    @property
    def numbers(self) -> int:
        """How many numbers a patch has."""
        return self.channels * math.prod(self.patch)


@dataclass(frozen=True)
class Encoding:
    """What makes an encoder of an architecture: tokens attend to one another in both directions, and a head reads them.

    Args:
        types: rows of a table that is added by the type of a token (BERT's segments); 0 where there is none.
        patches: how pictures become tokens; None where tokens are words.
        head: what comes out. "states" of every token; logits of the "words" in every place, through a linear map, the
            activation, a norm and the embedding (masked language models); or classes by a linear map of "each" token's
            state, of the "first" token's, or of that behind one more linear map and tanh, "pooled".
        classes: outputs of those three; 0 for the others.

    Raises:
        ValueError: a head that is unknown, or that has no classes where it needs some.
    """

    types: int = 0
    patches: Patches | None = None
    head: str = "states"
    classes: int = 0

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"Encoding.head must be one of {HEADS}, got {self.head!r}")
        if self.types < 0 or self.classes < 0 or (self.classes > 0) != (self.head in ("each", "first", "pooled")):
            raise ValueError(
                f"Encoding has types={self.types}, classes={self.classes} for head={self.head!r}; classes are for the "
                "heads each, first and pooled"
            )
        if self.patches is not None and (self.types or self.head == "words"):
            raise ValueError(f"patches of a picture have neither types nor words: types={self.types}, {self.head!r}")
