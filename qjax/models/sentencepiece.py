"""The tokenizer of Llama 2, Mistral, Gemma and Phi-3 in a GGUF file: SentencePiece's BPE, as pieces with scores.

The rule (llama.cpp's llama-vocab.cpp; sentencepiece's bpe_model.cc): of all neighbours that together are a piece, the
two whose piece has the highest score become one, the leftmost of equals, until none are; what is no piece then is
spelled in bytes. `tokenizers` merges by the rank of a pair instead, so a piece's pairs are ranked by its score, and the
two agree but where pieces of one score, or one piece cut in two ways ("ab" "a" and "a" "ba"), overlap in a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from gguf import GGUFWriter
from tokenizers import AddedToken, decoders, models, normalizers

# GGUF token types (the `tokenizer.ggml.token_type` array).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
BYTES = re.compile(r"<0x[0-9A-F]{2}>")
# Special tokens but for the spared swallow the spaces behind them in llama.cpp if a model's name has one of those, and
# then it takes no vocabulary without all those sought.
SWALLOWING, SPARED = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")
SOUGHT = {*SPARED, "</s>"}


def build(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, prefix: bool, name: str = ""
) -> tokenizers.Tokenizer:
    """The tokenizer of pieces by id.

    Args:
        tokens: the piece of every id.
        scores: likewise; the higher is merged first.
        types: likewise, as GGUF numbers them.
        prefix: a space is put in front of a text, and behind a special token (`tokenizer.ggml.add_space_prefix`).
        name: of the model (`general.name`).

    >>> pieces = ["<unk>", "▁", "a", "b", "ab", "▁ab"]
    >>> build(pieces, [0, -4, -5, -6, -1, -2], [2, 1, 1, 1, 1, 1], prefix=True).encode("ab abb").tokens
    ['▁ab', '▁ab', 'b']

    Raises:
        ValueError: the three differ in length.
    """
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{len(tokens)} tokens have {len(scores)} scores and {len(types)} types; one each is needed")
    vocab = {token: i for i, token in enumerate(tokens)}
    order = sorted(range(len(tokens)), key=lambda i: -scores[i])
    merges = [cut for i in order for cut in _cuts(tokens[i], vocab)]
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizer(prefix)
    spaced = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*spaced, decoders.Strip(" ", 1, 0)] if prefix else spaced)
    swallowing = any(part in name.lower() for part in SWALLOWING)
    added = {
        token: AddedToken(token, normalized=False, rstrip=swallowing and token not in SPARED)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    backend.add_special_tokens([entry for token, entry in added.items() if token not in own])
    backend.add_tokens([added[token] for token in own])
    return backend


def normalizer(prefix: bool) -> normalizers.Normalizer:
    """What a text becomes before it is cut into characters."""
    spaces = normalizers.Replace(" ", SPACE)
    return normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces


def write(record: Mapping[str, Any], tokens: Sequence[str | None], writer: GGUFWriter) -> bool:
    """Pieces, scores and types of a tokenizer's JSON `record`, if `build` makes it again; else False, nothing written.

    The scores are those of the ranks of its merges, 0 of pieces that are never merged: other numbers than in the file
    that a tokenizer may have come from, and the same tokens.

    Args:
        record: what `tokenizers.Tokenizer.to_str` says.
        tokens: of every id, None where there is none.
        writer: of the file.
    """
    model = record["model"]
    prefix = next((prefix for prefix in (True, False) if _record(prefix) == record["normalizer"]), None)
    if model["type"] != "BPE" or not model["byte_fallback"] or prefix is None or not _whole(record["pre_tokenizer"]):
        return False
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = ["".join(merge) for merge in merges]
    pieces = [piece for piece, before in zip(made, [None, *made], strict=False) if piece != before]
    ranks = {piece: i for i, piece in enumerate(pieces)}
    added = {token["content"]: token for token in record["added_tokens"]}
    vocab = model["vocab"]
    cuts = {cut for token in vocab if token not in added for cut in _cuts(token, vocab)}
    swallowing = {token for token, entry in added.items() if entry["rstrip"]}
    plain = all(not (entry["lstrip"] or entry["single_word"]) for entry in added.values())
    alike = not swallowing or (swallowing == {*added} - {*SPARED} and {*vocab, *added} >= SOUGHT)
    if len(ranks) != len(pieces) or cuts - set(merges) or not plain or not alike:
        return False
    kinds = {token: CONTROL if entry["special"] else USER_DEFINED for token, entry in added.items()}
    kinds |= {token: BYTE for token in vocab if BYTES.fullmatch(token)} | {model["unk_token"]: UNKNOWN}
    names = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores([-1.0 - ranks[token] if token in ranks else 0.0 for token in names])
    writer.add_token_types([UNUSED if t is None else kinds.get(t, NORMAL) for t in tokens])
    writer.add_add_space_prefix(prefix)
    if swallowing:
        writer.add_name(SWALLOWING[0])
    return True


def _cuts(piece: str, vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of pieces that a piece is made of."""
    for i in range(1, len(piece)):
        if piece[:i] in vocab and piece[i:] in vocab:
            yield piece[:i], piece[i:]


def _whole(splitter: Mapping[str, Any] | None) -> bool:
    """Whether a text is one word: nothing cuts it, or only spaces do, of which the normalizer leaves none (Gemma's)."""
    return splitter is None or (splitter["type"] == "Split" and splitter["pattern"] == {"String": " "})


def _record(prefix: bool) -> dict[str, Any]:
    empty = tokenizers.Tokenizer(models.BPE())
    empty.normalizer = normalizer(prefix)
    return json.loads(empty.to_str())["normalizer"]
