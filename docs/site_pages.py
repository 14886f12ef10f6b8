"""Hooks of mkdocs: README.md and CONTRIBUTING.md, which live above docs/, as pages; equations without scripts."""

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, with their links rewritten as from within docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        text = re.sub(r"\]\((README|CONTRIBUTING)\.md", lambda link: f"]({PAGES[link[1] + '.md']}", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **given: Any) -> str:
    """Let links from docs/ to the pages above it lead to their copies on the site."""
    return re.sub(r"\]\(\.\./(README|CONTRIBUTING)\.md", lambda link: f"]({PAGES[link[1] + '.md']}", markdown)


def on_post_template(html: str, *, template_name: str, **given: Any) -> str:
    """Let the page for a missing one find its files beside it, where the site is read from the disk, too."""
    if template_name != "404.html":
        return html
    html = re.sub(r'(href|src)="/', r'\1="', html).replace('href=""', 'href="index.html"')
    return html.replace('"base": "/"', '"base": "."')


def on_page_content(html: str, **given: Any) -> str:
    """Turn equations, which arithmatex has marked, into MathML, which browsers draw, and let names in tables break."""
    html = re.sub(r"(?<=<td><code>)\w+(?=</code>)", lambda name: name[0].replace("_", "_<wbr>"), html)
    for kind, opened, closed in (("span", r"\\\(", r"\\\)"), ("div", r"\\\[", r"\\\]")):
        display = "block" if kind == "div" else "inline"
        html = re.sub(
            rf'<{kind} class="arithmatex">{opened}(.*?){closed}</{kind}>',
            lambda found, kind=kind, display=display: (
                f'<{kind} class="equation">{convert(unescape(found[1]), display=display)}</{kind}>'
            ),
            html,
            flags=re.DOTALL,
        )
    return html
