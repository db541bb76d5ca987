"""Every study's config is valid: its fields, its recipes, and the rows its claims name."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.weight_only import shootout
from experiments import catalogue, settings, store, sweep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("[a-z]*.py")))
def test_its_rows_can_be_built_and_its_claims_name_them(path: str) -> None:
    module = settings.module(str(ROOT / path))
    config = settings.check(module.get_config())
    assert config["study"] == Path(path).stem and f"--config={path}" in (module.__doc__ or "")
    rows = sweep.rows(config)
    for row in rows:
        assert row.method == sweep.FLOAT or row.build()
    assert {name for claim in config["claims"] for name in claim} <= {row.name for row in rows}


def test_the_parts_of_the_shootout_are_the_whole_and_are_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipes(part: str) -> list[str]:
        return [row.recipe for row in sweep.rows(settings.check(shootout.get_config(part)))[1:]]

    apart = [recipe for part in shootout.PARTS for recipe in recipes(part)]
    assert sorted(apart) == sorted(recipes("")) and len(set(apart)) == len(apart)
    with pytest.raises(ValueError, match="no part '5'; know 4, 4-trained, 3"):
        shootout.get_config("5")

    monkeypatch.setattr(catalogue, "HERE", tmp_path)
    for part in ("3", "2-trained"):
        entry = {"rows": [{"name": part}], "claims": [{"better": part}]}
        store.write_json(tmp_path / "results" / f"{shootout.get_config(part).study}.json", entry)
    merged = {"rows": [{"name": "2-trained"}, {"name": "3"}], "claims": [{"better": "2-trained"}, {"better": "3"}]}
    assert catalogue.results() == {"shootout": merged}
