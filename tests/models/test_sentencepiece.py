"""SentencePiece's BPE in a GGUF file: against its rule written out here, and there and back."""

from __future__ import annotations

from itertools import pairwise

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from qjax.models.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, build
from qjax.models.tokenizer import Tokenizer, from_gguf, write_gguf

BYTES = [f"<0x{i:02X}>" for i in range(256)]
WORDS = [SPACE, *"abcde", "ab", "cd", "abc", f"{SPACE}a", "de", f"{SPACE}ab", "bc", "cde", f"{SPACE}{SPACE}", "ée", "é"]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *WORDS, "<user>", "<end>", "<|endoftext|>"]
TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(WORDS), USER_DEFINED, CONTROL, CONTROL]
SCORES = [0.0] * 259 + [-1.0 - (7 * i) % len(WORDS) for i in range(len(WORDS))] + [0.0] * 3
TEXTS = ["ab", " ab  abc", "x\ny é", "cde<user>ab<end> a", "", "  ", "a🙂b", "<s>abc</s> d"]


def by_the_rule(text):
    """Of neighbours that are a piece together, those of the highest score become one, the leftmost of equals."""
    ids = {token: i for i, token in enumerate(TOKENS)}
    parts = list(text.replace(" ", SPACE))
    while True:
        pairs = [(-SCORES[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        i = min(pairs)[1]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    spelled = ([part] if part in ids else [BYTES[b] for b in part.encode()] for part in parts)
    return [ids[piece] for pieces in spelled for piece in pieces]


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_are_merged_by_their_scores(prefix):
    backend = build(TOKENS, SCORES, TYPES, prefix=prefix)
    random = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(random.choice(list("abcde  é🙂")) for _ in range(random.integers(1, 12)))
        assert backend.encode(text).ids == by_the_rule(" " + text if prefix else text), text
        assert backend.decode(backend.encode(text).ids) == text


def file(path, tokenizer, vocab):
    writer = gguf.GGUFWriter(path, "llama")
    write_gguf(tokenizer, writer, vocab)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(path)


def start(backend, token="<s>"):
    i = backend.token_to_id(token)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, i)])
    return backend


def gemma():
    """As Gemma's tokenizer.json has it: spaces become pieces, and splitting at spaces finds none."""
    vocab = {token: i for i, token in enumerate(TOKENS)}
    merges = [("a", "b"), ("ab", "c"), ("a", "bc"), ("b", "c"), (SPACE, "a"), (SPACE, "ab"), (f"{SPACE}a", "b")]
    merges += [(SPACE, SPACE), ("c", "d"), ("d", "e"), ("c", "de"), ("cd", "e"), ("é", "e")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>", "<end>", "<|endoftext|>")]
    )
    backend.add_tokens([AddedToken("<user>", normalized=False)])
    return backend


def llama(swallowing=False):
    return build(TOKENS, SCORES, TYPES, prefix=True, name="Phi-3 mini" if swallowing else "")


@pytest.mark.parametrize("backend", [llama(), start(llama()), start(llama(True)), gemma(), start(gemma())])
def test_a_tokenizer_goes_out_and_comes_back(tmp_path, backend):
    before = Tokenizer(backend, bos=1, eos=2)
    after = from_gguf(file(tmp_path / "m.gguf", before, len(TOKENS) + 3))
    assert (after.bos, after.eos, after.pad, after.vocab) == (1, 2, None, len(TOKENS) + 3)
    for text in TEXTS:
        np.testing.assert_array_equal(after.encode(text), before.encode(text), err_msg=text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    if backend.post_processor is None:
        assert all(after.decode(after.encode(text)) == text for text in TEXTS[:3])


def test_special_tokens_swallow_spaces_in_phi3_only():
    ids = {token: i for i, token in enumerate(TOKENS)}
    assert llama(True).encode("</s>  ab").ids == [ids["</s>"], ids[f"{SPACE}ab"]]
    assert llama().encode("</s>  ab").ids == [ids["</s>"], ids[f"{SPACE}{SPACE}"], ids[f"{SPACE}ab"]]
    assert llama(True).encode("<s> ab").ids == llama().encode("<s> ab").ids


def test_what_is_no_sentencepiece_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 tokens have 2 scores and 3 types"):
        build(["a", "b", "c"], [0.0, 1.0], [1, 1, 1], prefix=True)
    pieces, splitting, single, some = gemma(), gemma(), gemma(), gemma()
    pieces.normalizer = normalizers.Lowercase()
    splitting.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    single.add_tokens([AddedToken("e", single_word=True)])
    some.add_special_tokens([AddedToken("<more>", rstrip=True)])  # not all of them
    for backend in (pieces, splitting, single, some):
        with pytest.raises(ValueError, match="SentencePiece's BPE; this tokenizer is BPE with other rules"):
            file(tmp_path / "m.gguf", Tokenizer(backend), len(TOKENS) + 1)


@pytest.mark.parametrize(
    ("kind", "message"), [("bert", "tokenizer is 'bert'"), ("llama", "lacks the key 'tokenizer.ggml.scores'")]
)
def test_a_file_without_a_tokenizer_for_us_is_named(tmp_path, kind, message):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=message):
        from_gguf(gguf.GGUFReader(tmp_path / "m.gguf"))
