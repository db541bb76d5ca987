"""Write the site: the reference from the docstrings, and around it the pages written by hand.

python docs/build.py site [more.md ...]
"""

from __future__ import annotations

import argparse
import inspect
import pathlib
import re
import sys
import warnings

import jinja2
import markupsafe
import pdoc
from pdoc.render import env
from pdoc.render_helpers import to_html

from qjax import recipes

HERE = pathlib.Path(__file__).parent
ORDER = ("getting_started", "formats", "operators", "tracing", "transforms", "studies", "interchange", "kernels")
"""The pages in reading order; the first is the front page."""


def title(text: str) -> str:
    """The heading on a page's first line."""
    return text.splitlines()[0].removeprefix("# ")


def page(text: str, titles: dict[str, str], template: jinja2.Template) -> str:
    """One page in the look of the reference; links between pages point at what is written, not at its source."""
    linked = re.sub(r"\]\((\w+)\.md", r"](\1.html", text)
    return template.render(title=title(text), text=markupsafe.Markup(to_html(linked)), pages=titles)


def methods() -> str:
    """The page of recipes: what each does, and the paper its file names in the first sentence."""
    lines = []
    for name in sorted(recipes.__all__):
        recipe = getattr(recipes, name)
        does = first_sentence(inspect.getdoc(recipe))
        source = first_sentence(inspect.getdoc(sys.modules[recipe.__module__]))
        lines.append(f"| [`{name}`](qjax/recipes.html#{name}) | {does} | {source} |")
    return "\n".join([
        "# Methods",
        "",
        "Published methods as recipes: `qjax.recipes.<name>(...)` with the authors' defaults, ready for `qjax.run`, or",
        "a name in a study's config.",
        "",
        "| recipe | does | source |",
        "|---|---|---|",
        *lines,
        "",
    ])  # fmt: skip


def first_sentence(text: str | None) -> str:
    """Up to the first full stop that ends a sentence, on one line."""
    line = " ".join((text or "").split())
    return re.split(r"(?<=[.])\s+(?=[A-Z])", line, maxsplit=1)[0]


def main() -> None:
    """Read the folder from the command line and fill it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("more", type=pathlib.Path, nargs="*", help="pages that other commands wrote, in Markdown")
    args = parser.parse_args()
    folder: pathlib.Path = args.folder

    texts = {name: (HERE / f"{name}.md").read_text() for name in ORDER} | {"methods": methods()}
    texts |= {path.stem: path.read_text() for path in args.more}
    titles = {name: title(text) for name, text in texts.items()}
    env.globals["pages"] = titles
    pdoc.render.configure(docformat="google", template_directory=HERE / "template", show_source=True)
    with warnings.catch_warnings():
        # A module that does not import would be missing from the reference; an unresolved annotation stays as written.
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        warnings.filterwarnings("error", "Error loading")
        pdoc.pdoc("qjax", output_directory=folder)
    template = env.get_template("page.html.jinja2")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(page(text, titles, template))
    (folder / "index.html").write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={ORDER[0]}.html">\n')
    print(f"{len(texts)} pages and the reference under {folder}/")


if __name__ == "__main__":
    main()
