"""The examples in docstrings and in the pages are run: those of modules, of README.md and of docs/."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from cbst_mx.run_dir import RunDir
from tests.fake_run import write_run

ROOT = Path(__file__).resolve().parents[1]
PROMPT = re.compile(r"^\s*>>> ", re.MULTILINE)
MODULES = [
    file
    for folder in ("cbst_mx", "symbols")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if PROMPT.search(file.read_text("utf-8"))
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write
    write_run(tmp_path / "runs" / "gta5-cbst")  # which some read
    with np.printoptions():  # and set how arrays are printed
        yield


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def write_parameters(path):
    """Write the parameters of a tiny network, where an example loads them."""
    from cbst_mx.label_space import CITYSCAPES_19
    from cbst_mx.networks.build import build_network
    from cbst_mx.networks.parameters import save_parameters
    from cbst_mx.networks.spec import NetworkSpec
    from symbols.backend import mx

    spec = NetworkSpec("fcn8s", 19, {"width": 1 / 32})
    save_parameters(path, build_network(spec, mx.cpu(), seed=0), spec, CITYSCAPES_19)


def without_fences(text):
    """Return a page without the lines that open and close code, which would be read as an example's output."""
    return re.sub(r"^\s*```.*$", "", text, flags=re.MULTILINE)


def run(test):
    output = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=output.append)
    assert not results.failed, "".join(output)
    return results.attempted


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_the_examples_of_a_module_run(file):
    module = importlib.import_module(module_name(file))
    tests = doctest.DocTestFinder(exclude_empty=True).find(module)
    # every prompt of the file is in a docstring that doctest finds
    assert sum(run(test) for test in tests) == len(PROMPT.findall(file.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page):
    text = page.read_text("utf-8")
    test = doctest.DocTestParser().get_doctest(without_fences(text), {}, page.name, str(page), 0)
    assert len(test.examples) == len(PROMPT.findall(text))
    if "load_network" in text:
        write_parameters(RunDir("runs/gta5-cbst").stage(1).parameters)
    if test.examples:
        run(test)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them, and of the functions that the site fills in."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    functions = set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
    return functions | {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]
    for link in links:
        file, _, anchor = link.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link
    assert links or page.name != "README.md"


def test_some_modules_have_examples():
    assert {"cbst_mx.messages", "cbst_mx.selftrain.thresholds"} <= set(map(module_name, MODULES))


def test_a_wrong_example_fails():
    page = "Text.\n\n```python\n>>> 1 + 1\n3\n```\n"
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        run(doctest.DocTestParser().get_doctest(without_fences(page), {}, "page", "page", 0))
