"""Every study's config is valid: its fields, its recipes, and the rows its claims name."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import settings, sweep

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
