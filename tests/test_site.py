"""The documentation site: it builds strictly, loads nothing from elsewhere, and has all that the program has."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

import cbst_mx
from cbst_mx.cli import main
from cbst_mx.config.schema import KINDS, keys

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; mkdocs ends with an error where a link or an anchor leads nowhere."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=str(ROOT), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(site, page):
    return (site / f"{page}.html").read_text("utf-8")


def words_of(site, page):
    return html.unescape(re.sub(r"<[^>]+>", "", text_of(site, page)))


def test_every_page_is_built(site):
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages == {path.stem for path in site.glob("*.html")} - {"404"}
    assert len(pages) > 20


def test_nothing_is_loaded_from_elsewhere(site):
    loading = re.compile(
        r"""<(?:script|img|iframe|source|video)\b[^>]*?\bsrc=["']?(https?:)?//"""
        r"""|<link\b[^>]*?\bhref=["']?(https?:)?//|@import\s+["'(]*(https?:)?//|url\(["']?(https?:)?//"""
    )
    files = [path for ending in ("html", "css") for path in site.rglob(f"*.{ending}")]
    assert len(files) > 20
    for path in files:
        assert not loading.search(path.read_text("utf-8")), path


def test_the_search_works_where_pages_are_opened_as_files(site):
    index = (site / "search" / "search_index.json").read_text("utf-8")
    assert (site / "search" / "search_index.js").read_text("utf-8") == f"var __index = {index}"
    assert (site / "assets" / "offline.js").is_file()
    for path in set(site.glob("*.html")) - {site / "404.html"}:  # which only a server shows
        page = path.read_text("utf-8")
        # the theme's script looks for workers at once
        assert 0 < page.index("assets/offline.js") < page.index("assets/javascripts/bundle"), path


def test_equations_are_drawn_without_a_script(site):
    page = text_of(site, "method")
    source = (DOCS / "method.md").read_text("utf-8")
    assert page.count('<math display="block"') == source.count("\n$$\n") // 2 >= 8
    # LaTeX that the converter does not know stays text
    equations = "".join(re.findall(r"<math.*?</math>", page, re.DOTALL))
    assert "\\" not in equations
    assert "$" not in re.search(r"<article.*</article>", page, re.DOTALL).group()


def test_every_function_of_the_method_has_its_entry(site):
    links = set(re.findall(r"api\.md#(cbst_mx[\w.]+)", (DOCS / "method.md").read_text("utf-8")))
    assert len(links) > 15
    page = text_of(site, "api")
    for name in links:
        assert f'id="{name}"' in page, name


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_reference_has_every_key(site, kind):
    page = text_of(site, f"keys-{kind}")
    words = words_of(site, f"keys-{kind}")
    for model in KINDS[kind]:
        for key in keys(model):
            assert f"<code>{key.name.rpartition('.')[2]}</code>" in page, key.name
            assert key.meaning.replace("`", "") in words, key.name
    assert "<!-- keys" not in page


def commands(command, name):
    yield name
    if isinstance(command, click.Group):
        for inside, other in command.commands.items():
            yield from commands(other, f"{name} {inside}")


def test_every_command_and_public_name_has_its_entry(site):
    words = words_of(site, "cli")
    for name in commands(main, "cbst-mx"):
        assert name in words, name
    page = text_of(site, "api")
    for name in (
        "selftrain.thresholds",
        "selftrain.pseudo_labels",
        "selftrain.confidence",
        "selftrain.portion.portion",
    ):
        assert f'id="cbst_mx.{name}"' in page, name
    for name in cbst_mx.__all__:
        assert f"{name}" in page, name


def test_no_link_leads_out_of_the_site(site):
    for path in site.glob("*.html"):
        for link in re.findall(r'href="([^"#]+)', path.read_text("utf-8")):
            if not re.match(r"[a-z]+:|/", link):
                assert (site / link.partition("?")[0]).exists(), (path.name, link)


def test_citations_name_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == cbst_mx.__version__
    assert {"message", "title", "authors", "type", "license"} <= set(citation)
    (paper,) = citation["references"]
    page = (DOCS / "citing.md").read_text("utf-8")
    for text in (citation["version"], paper["title"], paper["doi"], *(a["family-names"] for a in paper["authors"])):
        assert text in page


def test_readme_is_one_screen():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 50
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120
