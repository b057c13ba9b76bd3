"""The GPU rehearsal as far as it goes without its environment: what it would run, what it needs, the table it wrote."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def rehearse(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tools.rehearsal", *arguments],
        cwd=str(ROOT),
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_cases_have_names_of_their_own():
    names = rehearse("--list").stdout.splitlines()
    assert len(names) == len(set(names)) > 40
    for named in ("run of cbst-sp", "evaluate", "predict", "plan of gta5-cbst, 12 GB", "out of memory", "demo"):
        assert named in names
    assert len([name for name in names if name.endswith(", 8 GB")]) == 4


def test_without_a_compiler_one_sentence_says_so_and_nothing_is_made(tmp_path):
    done = rehearse(PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the rehearsal compiles C and needs gcc and nm: on Debian and Ubuntu apt-get install gcc\n"
    )
    assert done.stdout == ""


def test_the_page_has_the_table_that_the_rehearsal_writes():
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    table = (
        re.search("<!-- rehearsal -->\n(.*)<!-- end of rehearsal -->", page, re.DOTALL).group(1).strip().splitlines()
    )
    assert table[:2] == ["| work | ResNet-38 | FCN8s |", "| --- | ---: | ---: |"]
    assert len(table) > 15
    for row in table[2:]:
        assert re.fullmatch(r"\| [^|]+ \| [\d,]+ \| [\d,]+ \|", row), row
