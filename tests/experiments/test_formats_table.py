"""The page of formats in numbers: figures that can be computed by hand, and a row for what a format refuses."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import formats_table
from experiments.report import format_table


def test_the_facts_of_a_format_are_its_definition():
    facts = formats_table.facts("mxfp4")
    assert facts["bits"] == 4 + 8 / 32
    assert facts["range_db"] == pytest.approx(20 * math.log10(6 / 0.5))
    # Two codes for zero.
    assert sorted(set(facts["values"])) == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_a_row_is_a_format_with_all_its_names_and_of_ggml_a_type_with_its_bytes():
    names = ("mxfp4", "int8", "mxfp4_floor", "int8_channel", "tq1_0", "tq2_0", "int8_token")
    found = formats_table.distinct(names)
    assert found == {"mxfp4": ["mxfp4_floor"], "int8": ["int8_channel", "int8_token"], "tq1_0": [], "tq2_0": []}
    assert formats_table.facts("tq1_0")["bits"] == 54 * 8 / 256
    assert formats_table.facts("tq2_0")["bits"] == 66 * 8 / 256
    assert formats_table.facts("ggml_mxfp4")["kind"] == "ggml"


def test_signal_over_noise_is_of_all_matrices_together():
    # Columns of 7.5 and a number halfway between two steps of 1: int4_channel divides the largest magnitude by 7.5, so
    # that the step is 1, 7.5 saturates at 7, and 2.25 becomes 2.
    w = jnp.asarray(np.tile([[7.5], [2.25]], (1, 3)), jnp.float32)[None]
    signal, noise = 7.5**2 + 2.25**2, 0.5**2 + 0.25**2
    assert formats_table.sqnr("int4_channel", [w, 2 * w]) == pytest.approx(10 * math.log10(signal / noise), abs=1e-4)


def test_a_page_has_every_row_and_the_reason_of_a_refusal():
    row = formats_table.facts("int4_g64") | {"sqnr": {"gaussian": 20.0, "laplace": 19.0, "model": None}}
    found = {
        "rows": [row | {"refused": {"model": "no room for 576"}}],
        "command": "a command",
        "seed": 0,
        "sample": [4, 4],
        "nominal": [4, 4],
        "model": {"name": "a model", "matrices": "1 of 4 x 4", "weights": 16, "sha256": "0" * 64},
        "source_sha256": "0" * 64,
        "versions": {"jax": "0"},
        "device": "cpu",
    }
    found["rows"][0]["also"] = ["another_name"]
    page = format_table.render(found)
    assert "int4_g64" in page
    assert "= another_name" in page
    assert "20.00" in page
    assert "no room for 576" in page
