"""Claims beside their recorded verdicts."""

from __future__ import annotations

from experiments import claims
from experiments.catalogue import results


def test_every_recorded_claim_is_found_again_with_its_numbers():
    found = {study.path: study for study in claims.studies()}
    recorded = results()["formats"]["claims"]
    assert found["configs/formats.py"].claims == recorded
    assert found["configs/formats.py"].title == "MXFP4, NVFP4 and int4 by the paired protocol."
    assert "configs/number_formats.py" not in found  # it claims nothing


def test_a_claim_is_one_line_of_signs_and_shares():
    signs = {"wins": 3, "losses": 1, "ties": 0, "p": 0.5}
    numbers = {"mean": -0.5, "low": -0.75, "high": -0.25, "replicates": 2, "matrices": [signs, signs]}
    claim = {"better": "a", "worse": "b", "verdict": "reproduced", **numbers}
    line = claims.line(claims.Study("configs/x/y.py", "", []), claim)
    assert line == ("y", "a", "b", "-0.5000", "-0.7500 to -0.2500", "75 %", "reproduced")


def test_the_page_names_each_study_and_what_was_not_run(monkeypatch):
    monkeypatch.setattr(claims, "results", dict)
    page = claims.markdown()
    assert page.startswith("# Claims\n")
    assert "| rtn nvfp4 | rtn mxfp4 |  |  |  | not run |" in page and "`configs/claims/eight_bits.py`" in page
