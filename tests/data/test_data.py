"""Sources, the split and windows: the text is cut once and the same everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qjax import data


def test_topics_is_stable_and_hashed():
    text = data.topics()
    assert text == data.load_text() == data.load_text("topics")
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()
    assert len(text.text) > 300_000


def test_a_file_is_a_source(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("so it goes\n", encoding="utf-8")
    assert data.load_text(path) == data.load_text(str(path)) == data.from_file(path)
    assert data.load_text(path).name == "book.txt"


def test_bad_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load_text("nowhere.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="empty"):
        data.load_text(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="wikitext2"):
        data.from_hub("wikitext-2")


@given(st.lists(st.text(alphabet="abé \n", max_size=30), min_size=10, max_size=80))
def test_split_loses_nothing(lines):
    text = "\n".join(lines)
    try:
        parts = data.split(text)
    except ValueError:
        return
    assert "".join(parts) == text
    assert parts.calibration.endswith("\n") and parts.development.endswith("\n")
    assert len(parts.calibration) >= int(0.6 * len(text))


def test_split_is_60_20_20():
    text = data.topics().text
    shares = [len(part) / len(text) for part in data.split(text)]
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=1e-3)


def test_split_too_short():
    with pytest.raises(ValueError, match="too short"):
        data.split("one line")


@given(st.integers(2, 9), st.integers(20, 60))
def test_windows_are_a_prefix(length, size):
    rows = data.windows(range(size), length)
    assert rows.dtype == np.int32 and rows.shape == (size // length, length)
    np.testing.assert_array_equal(rows.ravel(), np.arange(rows.size))


@pytest.mark.parametrize(
    ("tokens", "length", "count", "match"),
    [
        (range(9), 1, None, "predicts nothing"),
        (range(9), 10, None, "0 windows"),
        (range(9), 3, 4, "hold 3 windows"),
        (np.zeros(9), 3, 1, "integers"),
        (np.zeros((3, 3), int), 3, 1, "one row"),
    ],
)
def test_bad_windows(tokens, length, count, match):
    with pytest.raises(ValueError, match=match):
        data.windows(tokens, length, count)


def test_samples_differ_by_seed_and_never_repeat_a_window():
    first = np.concatenate(data.sample(range(1000), 10, 20, seed=0, batch=5))
    again = np.concatenate(data.sample(range(1000), 10, 20, seed=0, batch=2))
    other = np.concatenate(data.sample(range(1000), 10, 20, seed=1, batch=5))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first[:, 0])) == 20
    with pytest.raises(ValueError, match="do not divide"):
        data.sample(range(1000), 10, 20, seed=0, batch=3)
    with pytest.raises(ValueError, match="holds 100 windows"):
        data.sample(range(1000), 10, 101, seed=0)
