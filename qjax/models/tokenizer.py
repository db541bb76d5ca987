"""Text to token ids and back, with the tokenizer a model was trained with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from gguf import GGUFReader, GGUFWriter
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from qjax.models import sentencepiece
from qjax.models.gguf import metadata
from qjax.models.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names of `words` that are written.
SPLITTERS = ("gpt-2", "smollm", "llama-bpe", "qwen2")
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` and the special ids of its model."""

    backend: tokenizers.Tokenizer
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    @property
    def vocab(self) -> int:
        """How many ids there are."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [tokens]; special tokens may be spelled out, a start token is added only if the model wants one."""
        return np.asarray(self.backend.encode(text).ids, np.int32)

    def decode(self, ids: Iterable[int] | Any, special: bool = True) -> str:
        """Text of a sequence of ids; `special=False` leaves special tokens out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def write(self, folder: str | Path) -> None:
        """tokenizer.json and tokenizer_config.json into a folder, as Hugging Face lays them out."""
        self.backend.save(str(Path(folder) / "tokenizer.json"))
        ids = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        config = {f"{name}_token": self.backend.id_to_token(i) for name, i in ids.items() if i is not None}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def from_gguf(reader: GGUFReader) -> Tokenizer:
    """The tokenizer stored in a GGUF file: byte-level BPE, or SentencePiece's.

    Raises:
        ValueError: if the file holds another kind of tokenizer, a word splitter unknown here, or lacks a part of one.
    """
    kind = metadata(reader, "tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            f"the GGUF file's tokenizer is {kind!r}; those that can be read are byte-level BPE ('gpt2') and "
            "SentencePiece's ('llama')"
        )

    def need(key: str) -> Any:
        if (value := metadata(reader, f"tokenizer.ggml.{key}")) is None:
            raise ValueError(f"the GGUF file lacks the key 'tokenizer.ggml.{key}' of its {kind!r} tokenizer")
        return value

    tokens: list[str] = need("tokens")
    types = metadata(reader, "tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    pieces = kind == "llama"
    if pieces:
        prefix = bool(metadata(reader, "tokenizer.ggml.add_space_prefix", True))
        name = str(metadata(reader, "general.name", ""))
        backend = sentencepiece.build(tokens, need("scores"), types, prefix=prefix, name=name)
    else:
        backend = _byte_level(tokens, types, need("merges"), metadata(reader, "tokenizer.ggml.pre", "default"))
    # Without a key, SentencePiece's tokenizers have a start token, and it is the second.
    bos, eos, pad = (
        metadata(reader, f"tokenizer.ggml.{name}_token_id", usual if pieces else None)
        for name, usual in (("bos", 1), ("eos", 2), ("padding", None))
    )
    if metadata(reader, "tokenizer.ggml.add_bos_token", pieces) and bos is not None:
        start = tokens[bos]
        backend.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, bos)])
    return Tokenizer(backend, bos, eos, pad)


def _byte_level(tokens: list[str], types: list[int], merges: list[str], splitter: str) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    # llama.cpp takes a word that is a token as it is for Llama 3, whatever the merges say.
    try:
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=splitter == "llama-bpe")
    except Exception as error:  # the library has no narrower one
        raise ValueError(f"the file's tokenizer is malformed: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = words(splitter)
    backend.decoder = decoders.ByteLevel()
    # Matched in the text before words are split, in the order of their ids.
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t, k in zip(tokens, types, strict=True) if k == CONTROL]
    )
    backend.add_tokens([AddedToken(t) for t, k in zip(tokens, types, strict=True) if k == USER_DEFINED])
    return backend


def write_gguf(tokenizer: Tokenizer, writer: GGUFWriter, vocab: int) -> None:
    """The metadata from which `from_gguf` makes the tokenizer again; ids up to `vocab` without a token are unused.

    Raises:
        ValueError: neither a byte-level BPE with words cut as a name of llama.cpp says nor SentencePiece's, or more
            tokens than `vocab`.
    """
    record = json.loads(tokenizer.backend.to_str())
    ids = {i: token for token, i in tokenizer.backend.get_vocab().items()}
    if max(ids) >= vocab:
        raise ValueError(f"the tokenizer has an id {max(ids)}, the model a vocabulary of {vocab}")
    tokens = [ids.get(i) for i in range(vocab)]
    if not (_write_byte_level(record, tokens, writer) or sentencepiece.write(record, tokens, writer)):
        raise ValueError(
            f"a GGUF file holds byte-level BPE with words cut as in {', '.join(SPLITTERS)}, or SentencePiece's BPE; "
            f"this tokenizer is {record['model']['type']} with other rules; export without tokenizer="
        )
    for i, add in (
        (tokenizer.bos, writer.add_bos_token_id),
        (tokenizer.eos, writer.add_eos_token_id),
        (tokenizer.pad, writer.add_pad_token_id),
    ):
        if i is not None:
            add(i)
    writer.add_add_bos_token(tokenizer.bos is not None and tokenizer.encode("").tolist() == [tokenizer.bos])


def _write_byte_level(record: dict[str, Any], tokens: list[str | None], writer: GGUFWriter) -> bool:
    """Tokens and merges of a tokenizer's JSON `record`, if a name in `SPLITTERS` says how it cuts words."""
    known = [name for name in SPLITTERS if _record(words(name)) == record["pre_tokenizer"]]
    if record["model"]["type"] != "BPE" or not known:
        return False
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in record["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(known[0])
    writer.add_token_list([f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)])
    writer.add_token_types([UNUSED if token is None else added.get(i, NORMAL) for i, token in enumerate(tokens)])
    merges = record["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    return True


def _record(splitter: pre_tokenizers.PreTokenizer) -> dict[str, Any]:
    empty = tokenizers.Tokenizer(models.BPE())
    empty.pre_tokenizer = splitter
    return json.loads(empty.to_str())["pre_tokenizer"]


def words(splitter: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words before merging, by the name in `tokenizer.ggml.pre` (llama.cpp, llama-vocab.cpp).

    >>> [word for word, _ in words("smollm").pre_tokenize_str("in 1984")]
    ['in', 'Ġ', '1', '9', '8', '4']
    """
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if splitter in ("gpt-2", "olmo"):
        return gpt2
    if splitter in ("smollm", "starcoder", "refact", "command-r", "codeshell"):
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if splitter in ("llama-bpe", "qwen2"):
        pattern = Regex(LLAMA3_WORDS if splitter == "llama-bpe" else QWEN2_WORDS)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), raw])
    raise ValueError(f"unknown word splitter {splitter!r} (GGUF key tokenizer.ggml.pre)")


def from_file(path: str | Path, bos: int | None, eos: int | None, pad: int | None) -> Tokenizer:
    """A Hugging Face `tokenizer.json`."""
    return Tokenizer(tokenizers.Tokenizer.from_file(str(path)), bos, eos, pad)
