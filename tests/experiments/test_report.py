"""The page: builds from run folders alone, and holds everything it shows."""

from __future__ import annotations

import html.parser
import importlib.util
import re
from pathlib import Path

import pytest

from experiments.report import facts
from experiments.report.load import find
from experiments.report.page import render

spec = importlib.util.spec_from_file_location("fake", Path(__file__).parent / "fake.py")
assert spec is not None and spec.loader is not None
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    fake.fake_run(runs, layers=3, width=64)
    fake.fake_run(runs, "formats", replicates=3, layers=2, width=64)
    return render(find(runs))


class Tags(html.parser.HTMLParser):
    """Every attribute that could load something, and whether tags close."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img", "input", "path", "use", "image"):
            self.open.append(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data", "action")
        ]

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_is_loaded_from_elsewhere(page):
    tags = Tags()
    tags.feed(page)
    assert tags.links and all(link.startswith(("#", "data:image/png;base64,")) for link in tags.links)
    style = "".join(re.findall(r"<style.*?</style>", page, flags=re.S))
    assert "@import" not in style and not re.findall(r"url\((?!#)", page)
    assert "<link" not in page and "fetch(" not in page and "import(" not in page
    assert not tags.open


def test_it_shows_what_it_should(page):
    for text in (
        *("gptq int3_g64_affine", "12 dead columns", "71f2ff5d", "SmolLM2-135M several ways"),
        *("Perplexity against bits", "Error, layer by layer", "Where the outliers are", "What it writes", "Every leaf"),
        *("Provenance", "reproduced", "undecided", "not judged", "crest grows with output error"),
    ):
        assert text in page
    assert "<said" not in page and "&lt;said" in page, "generated text is escaped"
    assert page.count("<svg") == 14


def test_the_page_is_deterministic(tmp_path):
    fake.fake_run(tmp_path, layers=2, width=64)
    assert render(find(tmp_path)) == render(find(tmp_path))


def test_a_run_without_pictures_or_quantized_rows(tmp_path):
    folder = fake.fake_run(tmp_path, layers=1, width=64)
    for name in ("outliers.npz", "timing.jsonl", "about.txt"):
        (folder / name).unlink()
    for path in (folder / "rows").glob("*.json"):
        if "float" not in path.name:
            path.unlink()
    metrics = folder / "metrics.json"
    import json

    kept = [row for row in json.loads(metrics.read_text())["rows"] if row["name"] == "float"]
    metrics.write_text(json.dumps({"rows": kept, "claims": []}))
    assert "The table" in render(find(tmp_path))


def test_newest_run_of_each_study(tmp_path):
    import os
    import shutil

    old = fake.fake_run(tmp_path, layers=1, width=64)
    new = old.with_name("ffffffffffff")
    shutil.copytree(old, new)
    os.utime(old / "metrics.json", (1, 1))
    assert [run.folder.name for run in find(tmp_path)] == ["ffffffffffff"]
    assert len(find(tmp_path, everything=True)) == 2
    with pytest.raises(FileNotFoundError, match="run a study first"):
        find(tmp_path / "nothing")


def test_summary_pairs_each_seed_with_its_own_float(tmp_path):
    fake.fake_run(tmp_path, "formats", replicates=3, layers=1, width=64)
    (run,) = find(tmp_path)
    records = {r["name"]: r for r in facts.summary(run)}
    assert records["float"]["cost"] == 0.0 and records["float"]["seeds"] == 3
    assert records["gptq mxfp4"]["low"] <= records["gptq mxfp4"]["perplexity"] <= records["gptq mxfp4"]["high"]
