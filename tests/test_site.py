"""The documentation site: it builds without a warning, has every page, and needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    """mkdocs warns of a missing page and of a link or anchor that leads nowhere; here a warning is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.stem: page for page in (tmp_path / "site").glob("*.html")}
    sources = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert set(pages) == {"index", "contributing", "404", *sources}
    for page in pages.values():
        text = page.read_text("utf-8")
        fetched = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\s\">]*)", text)
        assert fetched == []
    assert "matrix.svg" in pages["concepts"].read_text("utf-8")
    assert not list((tmp_path / "site").rglob("*.py"))
    # Equations are drawn by the browser, and none is left as LaTeX or as text that failed.
    equations = "".join(pages[name].read_text("utf-8") for name in ("metrics", "strategies"))
    assert equations.count("<math") > 50
    assert "arithmatex" not in equations
    assert equations.count("<math") == equations.count('class="equation"'), "one that is too wide is scrolled by itself"
    # The page for a missing one is read from the disk, too.
    assert re.findall(r'(?:href|src)="/[^"]*"|"base": *"/[^"]*"', pages["404"].read_text("utf-8")) == []
    # Where a page is read from the disk, the browser allows no worker process and no request for the index.
    assert '<script src="vendor/iframe-worker.js">' in pages["index"].read_text("utf-8")
    assert (tmp_path / "site/search/search_index.js").read_text("utf-8").startswith("var __index = ")
