"""What the decoding benchmark prints, from made-up times."""

from __future__ import annotations

import sys

import pytest

from experiments.benchmarks import decoding
from experiments.benchmarks.decoding import FLOAT, Run, ask, common, peer, shown, table

FILE = "llama.cpp, Q4_0"
ROUNDS = [
    {FLOAT: Run(2.0, [1, 2, 3]), "int4": Run(own, [1, 2, 4]), f"{FILE}, 1 thread(s)": Run(1.0, [1, 5, 3]),
     f"{FILE}, 2 thread(s)": Run(quick, [1, 5, 3])}
    for own, quick in ((0.5, 0.9), (0.4, 0.8), (0.5, 3.0))
]  # fmt: skip


def test_texts_have_so_many_tokens_in_common():
    assert common([1, 2], [1, 2]) == 2 and common([1, 2, 3], [1, 4, 3]) == 1 and common([0], [1]) == 0


def test_the_peer_is_shown_on_its_better_number_of_threads():
    assert shown(ROUNDS) == [FLOAT, "int4", f"{FILE}, 2 thread(s)"]


def test_a_line_has_rates_and_ratios_of_the_same_round():
    sizes = {FLOAT: 2**20, "int4": 2**18, FILE: 2**19}
    first, second, third = table(ROUNDS, sizes, steps=3)
    assert "1.0 tokens/s" in first and "1.0 MiB" in first and f"first 3 tokens as {FLOAT}" in first
    assert f"4.00 of {FLOAT}" in second and f"2.00 of {FILE}, 2 thread(s)" in second
    assert "0.5 MiB" in third and "first 1 tokens" in third


def test_a_peer_answers_line_by_line_and_one_that_ends_is_reported(tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text("import sys\nfor _ in sys.stdin: print('[[\"Q4_0\", 2, 0.5, [7]]]', flush=True)")
    monkeypatch.setattr(decoding, "PEER", script)
    with peer(sys.executable, tmp_path / "model.gguf", [1], 2) as process:
        assert ask(process) == {f"{FILE}, 2 thread(s)": Run(0.5, [7])}
    script.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="status 3"), peer(sys.executable, tmp_path / "model.gguf", [1], 2) as process:
        decoding.answer(process)
