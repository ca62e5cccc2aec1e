"""Everything there is to read, on one page: ``python -m docs.page [FOLDER]`` writes ``index.html``.

The guides are the Markdown files of this folder and the repository's own; the reference is made from the docstrings of
the public names, so that it cannot say anything else.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

import hub_merge

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/guides/merge-two.md",
    "docs/guides/kohya.md",
    "docs/guides/organisation.md",
    "docs/guides/choose-a-method.md",
    "docs/guides/zoo.md",
    "docs/guides/write-a-method.md",
    "docs/formats.md",
    "docs/upgrades.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
PICTURES = ("docs/orthogonality.png",)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
STYLE = """
:root { color-scheme: light dark; --edge: #8884; --soft: #8881; --link: light-dark(#0a58ca, #8ab4f8); }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; display: grid; grid-template-columns: 16rem minmax(0, 1fr); }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1rem; box-sizing: border-box;
  border-right: 1px solid var(--edge); font-size: .9rem; }
nav a { display: block; padding: .15rem 0; } nav a.name { font-family: ui-monospace, monospace; padding-left: .8rem; }
main { padding: 1rem 2rem 4rem; max-width: 54rem; } a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; } section { border-bottom: 1px solid var(--edge); padding-bottom: 1.5rem; }
pre, code { font: .88em/1.5 ui-monospace, monospace; background: var(--soft); border-radius: 4px; }
pre { padding: .7rem 1rem; overflow-x: auto; white-space: pre-wrap; }
code { padding: .1em .3em; } pre code { background: none; padding: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .92rem; }
th, td { border: 1px solid var(--edge); padding: .3rem .6rem; text-align: left; vertical-align: top; }
p.words { white-space: pre-wrap; margin-left: 1rem; }
img { max-width: 100%; background: white; } h4 { margin-bottom: .2rem; }
@media (max-width: 50rem) { body { display: block; } nav { position: static; height: auto; } }
"""


def slug(text: str) -> str:
    """Return ``text`` as the name of a place on the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def title_of(text: str) -> str:
    return next(line[2:] for line in text.splitlines() if line.startswith("# "))


def section(page: str) -> str:
    """Return a Markdown file as a section, its links to other files as links into this page, or as plain words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    tokens = MARKDOWN.parse(text)
    outside = False
    for token in (inner for outer in tokens for inner in outer.children or ()):
        if token.type == "image":
            token.attrSet("src", target(str(token.attrGet("src")), page))
        elif token.type == "link_open":
            link = target(str(token.attrGet("href")), page)
            token.attrSet("href", link)
            token.hidden = outside = not link
        elif token.type == "link_close":
            token.hidden = outside
    return f'<section id="{slug(page)}">\n{MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})}</section>\n'


def target(link: str, page: str) -> str:
    """Return where a link of ``page`` leads from here, empty for what is not on the page."""
    if re.match(r"[a-z]+:|#", link):
        return link
    path = ((ROOT / page).parent / link.partition("#")[0]).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{page} links to {link}, which is not there")
    name = path.relative_to(ROOT).as_posix()
    return f"#{slug(name)}" if name in PAGES else path.name if name in PICTURES else ""


# --- the reference ----------------------------------------------------------------------------------------------------


def members(value: Any) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class itself defines."""
    if not inspect.isclass(value):
        return []
    classes = [kind for kind in value.__mro__ if kind.__module__.startswith("hub_merge")]
    seen = {name: member for kind in reversed(classes) for name, member in vars(kind).items()}
    fields, shown = getattr(value, "__dataclass_fields__", {}), (property, classmethod, staticmethod)
    return sorted(
        (name, member)
        for name, member in seen.items()
        if not (name.startswith("_") or name in fields) and (inspect.isfunction(member) or isinstance(member, shown))
    )


def documented(name: str, value: Any, level: int) -> str:
    """Return heading, signature and docstring of a public name."""
    plain = getattr(value, "__func__", value)
    words = re.sub(r"``(.+?)``", r"<code>\1</code>", escape(inspect.getdoc(value) or ""))
    return (
        f'<h{level} id="{slug(f"api {name}")}"><code>{escape(name)}</code></h{level}>\n'
        f'<pre><code>{escape(signature(name, plain))}</code></pre>\n<p class="words">{words}</p>\n'
    )


def signature(name: str, value: Any) -> str:
    """Return how a name is called; defaults that are objects of ours are left out."""
    if isinstance(value, property):
        returns = inspect.signature(value.fget).return_annotation if value.fget else ""
        return f"{name}: {returns}"
    try:
        told = f"{name}{inspect.signature(value)}"
    except (TypeError, ValueError):
        return name
    return re.sub(r"<[^<>]+>", "...", re.sub(r"(: |-> )'([^']*)'", r"\1\2", told))


def reference() -> str:
    """Return the section of the public names."""
    parts = ['<section id="reference">\n<h1>Reference</h1>\n']
    for name in hub_merge.__all__:
        value = getattr(hub_merge, name)
        parts.append(documented(name, value, 2))
        parts += [documented(f"{name}.{member}", inner, 4) for member, inner in members(value)]
    return "".join([*parts, "</section>\n"])


def page() -> str:
    """Return the whole page."""
    titles = [(slug(path), title_of((ROOT / path).read_text(encoding="utf-8"))) for path in PAGES]
    links = [f'<a href="#{place}">{escape(title)}</a>' for place, title in [*titles, ("reference", "Reference")]]
    links += [f'<a class="name" href="#{slug(f"api {name}")}">{name}</a>' for name in hub_merge.__all__]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>hub_merge</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><nav>\n{chr(10).join(links)}\n</nav>\n<main>\n"
        f"{''.join(map(section, PAGES))}{reference()}</main></body></html>\n"
    )


def main(folder: Path) -> None:
    """Write the page and its pictures to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page(), encoding="utf-8")
    for picture in PICTURES:
        shutil.copy(ROOT / picture, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs")
