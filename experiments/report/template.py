"""A page from its template: style and script are inside, so that it refers to nothing outside itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).resolve().parent


def fill(name: str, **fields: Any) -> str:
    """HTML of the template with its fields; one that is missing raises."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
    style, script = ((HERE / part).read_text(encoding="utf-8") for part in ("style.css", "script.js"))
    return env.get_template(name).render(**fields, style=style, script=script)
