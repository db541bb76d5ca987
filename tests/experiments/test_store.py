"""Files are whole or absent; the catalogue reads what exists."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import catalogue, record, store


def test_json_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.json"
    store.write_json(path, {"b": 1.5, "a": [1]})
    assert path.read_text() == '{\n "b": 1.5,\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, {"a": float("nan")})
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write_json(path, {})
    assert store.read_json(path) == {"b": 1.5, "a": [1]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_arrays(tmp_path):
    store.write_arrays(tmp_path / "x.npz", {"input/layers/0": np.arange(3.0)})
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["input/layers/0"], np.arange(3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_broken_json_is_named(tmp_path):
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(ValueError, match=r"m\.json is not JSON"):
        store.read_json(tmp_path / "m.json")


def test_catalogue_has_every_row_once():
    table = catalogue.catalogue()
    assert len(table) == len({row["id"] for row in table}) == 475
    assert {row["state"] for row in table} <= set(catalogue.STATES)
    by_id = {row["id"]: row for row in table}
    assert by_id["E3"]["recipe"] == ["qjax/recipes/frantar2022_gptq.py:gptq"]
    assert "configs/quickstart.py" in by_id["E3"]["config"]


def test_done_needs_all_four():
    for row in catalogue.catalogue():
        complete = bool(row["recipe"] or row["function"]) and row["config"] and row["check"] and row["result"]
        assert (row["state"] == "done") == bool(complete and row["class"] != "OUT"), row


def test_record_keeps_table_and_provenance(tmp_path):
    run = tmp_path / "runs" / "toy" / "abc"
    store.write_json(run / "metrics.json", {"rows": [{"name": "float"}], "claims": []})
    store.write_json(run / "provenance.json", {"study": "toy"})
    path = record.record(run, tmp_path / "results")
    assert store.read_json(path) == {
        "run": "toy/abc",
        "rows": [{"name": "float"}],
        "claims": [],
        "provenance": {"study": "toy"},
    }
