"""The matrix of methods and formats: numbers where a pair works, reasons where it cannot, faults that come through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from experiments import composability


@pytest.fixture(autouse=True)
def whole_tracebacks():
    """What the command sets for itself ends with the test."""
    before = jax.config.jax_traceback_filtering
    yield
    jax.config.update("jax_traceback_filtering", before)


def test_every_cell_is_a_number_or_a_reason(capsys):
    composability.main(["--toy", "--solvers", "rtn,hqq", "--formats", "kmeans16"])
    tables = capsys.readouterr().out.split("\n\n")[1:-1]
    assert len(tables) == len(composability.SETTINGS)
    cells = {}
    for table, setting in zip(tables, composability.SETTINGS, strict=True):
        title, header, *rows = table.splitlines()
        assert title == setting and header.split() == ["kmeans16"]
        reasons = [row.strip() for row in rows if row.startswith("  [")]
        cells[setting] = {row.split()[0]: row.split()[1:] for row in rows if not row.startswith("  [")}
        assert cells[setting]["hqq"][0] in [reason.split()[0] for reason in reasons if "moves scales" in reason]
        assert all(float(cell) > 0 for row in cells[setting].values() for cell in row if not cell.startswith("["))
    alone, _, split, behind = (float(rows["rtn"][0]) for rows in cells.values())
    assert alone == 1 != split and behind < 0.5


def test_faults_are_no_reasons():
    jax.config.update("jax_traceback_filtering", "off")

    def broken(format):
        return composability.chain(composability.transforms.quantize_with(solve, format))

    def solve(w, fmt):
        return jnp.ones(3) + jnp.ones(4)

    fmt = composability.formats()["mxfp4"]
    with pytest.raises(TypeError, match="broadcast"):
        composability.attempt(composability.toy(), broken, fmt, composability.Setting())


def test_names_are_checked():
    with pytest.raises(ValueError, match="--formats: 'int5' is none of int4_g64"):
        composability.main(["--toy", "--formats", "int5"])
