"""A hook of mkdocs: README.md and CONTRIBUTING.md, which live above docs/, as pages of the site."""

import re
from pathlib import Path
from typing import Any

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
